"""For each kind of thing that one may add, one module and one line in a registry are enough: the
config knows its keys, and a run or a command uses it. CONTRIBUTING.md tells the same in words."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, ClassVar

import pytest
import torch
from helpers import same
from torch import nn
from typer.testing import CliRunner

from fluxsmith.adapters.layers import add
from fluxsmith.adapters.lora import Settings as LoraSettings
from fluxsmith.adapters.low_rank import LowRank
from fluxsmith.cli import main
from fluxsmith.cli.commands import app
from fluxsmith.config import show
from fluxsmith.config.adapter_section import ADAPTERS
from fluxsmith.config.objective_section import OBJECTIVES
from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.sources import SOURCES
from fluxsmith.errors import UserError
from fluxsmith.evaluation.evaluator import Evaluator, Figure, Score
from fluxsmith.evaluation.evaluators import EVALUATORS
from fluxsmith.evaluation.measurement import during_training
from fluxsmith.flow.solvers import SCHEDULES, SOLVERS, Solver, stepping, uniform_grid
from fluxsmith.flow.timesteps import DENSITIES
from fluxsmith.interop.lora_files import read_lora, write_lora
from fluxsmith.interop.lora_names import DIFFUSERS, FORMATS, Format
from fluxsmith.sampling.edit import Edit
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.text import ENCODERS
from fluxsmith.text.encoder import TextEmbedding
from fluxsmith.training.flow_matching import FlowMatching
from fluxsmith.training.objective import Losses
from fluxsmith.training.optimiser import OPTIMISERS
from fluxsmith.training.recorder import read_metrics
from fluxsmith.training.run import train


@pytest.fixture
def module(monkeypatch):
    """module(name=..., ...): a module of these names, as a file of one's own would be."""

    def module(**names: object) -> str:
        made = ModuleType("added_by_a_test")
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, made.__name__, made)
        return made.__name__

    return module


def trained(toy, tmp_path, *overrides: str) -> list[float]:
    """The losses of a run."""
    assert train(toy("train.steps=2", "train.log_every=1", "evaluate.every=0", *overrides)) == 0
    return [record["loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]


@dataclass(frozen=True)
class AtOneTime:
    time: Annotated[float, "The time that every image is taken at."] = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.time <= 1:
            raise ValueError(f"time={self.time}: must be from 0 to 1")

    def quantile(self, u: torch.Tensor) -> torch.Tensor:
        return torch.full_like(u, self.time)


def test_a_density(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(DENSITIES, "one-time", AtOneTime)
    chosen = ("flow.timesteps=one-time", "flow.time=0.25")
    assert toy(*chosen).flow.choice == AtOneTime(0.25)
    assert "time: 0.25" in show(toy(*chosen))
    assert len(trained(toy, tmp_path, *chosen)) == 2
    with pytest.raises(UserError, match=r"flow\.time=2\.0: must be from 0 to 1"):
        toy("flow.timesteps=one-time", "flow.time=2")
    with pytest.raises(UserError, match=r"flow\.mean=1: .*one-time has no mean.*logit_normal"):
        toy("flow.timesteps=one-time", "flow.mean=1")


@dataclass(frozen=True)
class GreySettings:
    level: Annotated[int, "The grey of every image."] = 128


def grey(settings: GreySettings, split: str) -> ImageSet:
    images = torch.full((16, 1, 8, 8), settings.level, dtype=torch.uint8)
    return ImageSet(images, torch.zeros(16, dtype=torch.long), [("grey",)], None)


def test_a_data_source(toy, tmp_path, monkeypatch, module):
    monkeypatch.setitem(SOURCES, "grey", module(Settings=GreySettings, load=grey))
    assert toy("data.source=grey").data.level == 128
    assert len(trained(toy, tmp_path, "data.source=grey", "data.level=7")) == 2


@dataclass(frozen=True)
class LengthSettings:
    width: Annotated[int, "Width of its one token."] = 8


class Length(nn.Module):
    """Knows a prompt by its length."""

    max_tokens = 1

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_width = self.pooled_width = width
        self.out = nn.Linear(1, width)

    def check(self, prompts) -> None:
        """Takes any prompt."""

    def token_counts(self, prompts) -> list[int]:
        return [1] * len(prompts)

    def forward(self, prompts) -> TextEmbedding:
        return self.embed(self.read(prompts))

    def read(self, prompts, room: int = 0) -> torch.Tensor:
        return torch.tensor([[float(len(prompt))] for prompt in prompts])

    def embed(self, read: torch.Tensor) -> TextEmbedding:
        pooled = self.out(read)
        return TextEmbedding(pooled[:, None], pooled)


def test_a_text_encoder(toy, tmp_path, monkeypatch, module):
    added = module(Settings=LengthSettings, build=lambda settings, *_: Length(settings.width))
    monkeypatch.setitem(ENCODERS, "length", added)
    chosen = "text={encoder: length, width: 16}"
    assert toy(chosen).text.width == 16
    assert len(trained(toy, tmp_path, chosen)) == 2


class Times(FlowMatching):
    """A multiple of the loss of flow matching."""

    @dataclass(frozen=True)
    class Settings:
        times: Annotated[float, "What the loss is multiplied by."] = 2.0

    @classmethod
    def build(cls, config, pipeline) -> "Times":
        built = super().build(config, pipeline)
        built.times = config.objective.choice.times
        return built

    def losses(self, inputs) -> Losses:
        plain = super().losses(inputs)
        return replace(plain, total=self.times * plain.total)


def test_an_objective(toy, tmp_path, monkeypatch, module):
    monkeypatch.setitem(OBJECTIVES, "times", f"{module(Times=Times)}:Times")
    first, _ = trained(toy, tmp_path)
    more = ("objective.kind=times", "objective.times=3", f"output_dir={tmp_path / 'times' / 'run'}")
    tripled, _ = trained(toy, tmp_path / "times", *more)
    assert tripled == pytest.approx(3 * first, rel=1e-5)


class WithAScale(FlowMatching):
    """Has a parameter of its own, trained beside the model, and records a second figure."""

    terms = ("plain",)

    @classmethod
    def build(cls, config, pipeline) -> "WithAScale":
        built = super().build(config, pipeline)
        built.module = nn.Linear(1, 1, bias=False)
        return built

    def losses(self, inputs) -> Losses:
        plain = super().losses(inputs)
        scale = self.module(torch.ones(1)).square() + 1
        return replace(plain, total=scale * plain.total, terms={"plain": plain.total})


def test_an_objective_with_parameters_of_its_own_resumes_to_the_bit(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "scaled", WithAScale)
    plan = ("objective.kind=scaled", "train.steps=4", "train.log_every=2", "evaluate.every=0",
            "train.checkpoint_every=2", "train.keep_checkpoints=0")  # fmt: skip
    assert train(toy(*plan)) == 0
    folder = tmp_path / "run"
    whole = checkpoints.load(folder / "diffusion-4.pt")
    record = read_metrics(folder / "metrics.jsonl")[-1]
    assert record["loss"] > record["plain"] > 0
    (folder / "diffusion-4.pt").unlink()
    assert train(toy(*plan), resume="auto") == 0
    again = checkpoints.load(folder / "diffusion-4.pt")
    assert whole["objective"].keys() == {"weight"}
    for part in ("model", "ema", "objective", "optimizer", "window"):
        assert same(again[part], whole[part]), part


class Penalised(FlowMatching):
    """Adds the squared gradient of the velocity with respect to its input."""

    second_derivatives = True

    def losses(self, inputs) -> Losses:
        x0 = inputs.x0.detach().requires_grad_()
        plain = super().losses(replace(inputs, x0=x0))
        (slope,) = torch.autograd.grad(plain.total.sum(), x0, create_graph=True)
        return replace(plain, total=plain.total + slope.square().flatten(1).mean(1))


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_an_objective_with_a_gradient_penalty(toy, tmp_path, monkeypatch, kernels):
    monkeypatch.setitem(OBJECTIVES, "penalised", Penalised)
    plan = ("objective.kind=penalised", f"train.kernels={kernels}")
    assert all(loss > 0 for loss in trained(toy, tmp_path, *plan))
    if kernels == "auto":  # long enough to be looked at
        again = f"output_dir={tmp_path / 'looked at'}"
        assert train(toy(*plan, "train.steps=100", "train.sample_every=0", again)) == 0
        records = read_metrics(tmp_path / "looked at" / "metrics.jsonl")
        assert any("loss_held_out" in record for record in records)
    with pytest.raises(UserError, match="compiled code has no second derivatives"):
        train(toy(*plan, "train.compile=true", f"output_dir={tmp_path / 'compiled'}"))


def test_an_optimiser(toy, tmp_path, monkeypatch):
    def descent(groups, config):
        return torch.optim.SGD(groups, lr=config.learning_rate)

    monkeypatch.setitem(OPTIMISERS, "sgd", descent)
    losses = trained(toy, tmp_path, "train.optimiser=sgd")
    other = trained(toy, tmp_path / "b", f"output_dir={tmp_path / 'b' / 'run'}")
    assert losses[0] == other[0]
    assert losses[1] != other[1]
    with pytest.raises(UserError, match=r"train\.optimiser=adamz: must be one of adamw, sgd"):
        train(toy("train.optimiser=adamz"), overwrite=True)


@stepping
def jumpy(velocity, noise):
    """A stochastic solver with a state: it follows the mean of the last two velocities."""
    before = []

    def step(i, x, t, dt):
        before.append(velocity(x, t))
        return x + dt * sum(before[-2:]) / len(before[-2:]) + 0.1 * noise(i)

    return step


def test_a_solver(toy, pipeline, monkeypatch):
    """Its noise belongs to the picture, and so do pictures drawn beside others."""
    monkeypatch.setitem(SOLVERS, "jumpy", Solver(jumpy, order=1, evaluations=lambda steps: steps))
    assert toy("sample.solver=jumpy").sample.solver == "jumpy"
    drawn = pipeline.generate(["1", "two", "3"], solver="jumpy", steps=4)
    alone = pipeline.generate(["two"], solver="jumpy", steps=4, first_index=1)
    torch.testing.assert_close(alone, drawn[1:2], atol=1e-5, rtol=0)
    assert not torch.allclose(drawn, pipeline.generate(["1", "two", "3"], steps=4), atol=0.01)
    mask = torch.zeros(1, 16, 16)
    edit = Edit(torch.full((1, 16, 16), 0.3), strength=0.5, mask=mask)
    kept = pipeline.generate(["1"], solver="jumpy", steps=4, edit=edit)
    torch.testing.assert_close(kept[0], edit.image, atol=1e-4, rtol=0)


def test_a_schedule(toy, pipeline, monkeypatch):
    monkeypatch.setitem(SCHEDULES, "squared", lambda steps, tokens: uniform_grid(steps).square())
    settings = toy("sample.schedule=squared").sample
    times = []
    Sampler(pipeline, settings).generate(["1"], steps=2, on_step=lambda _, t, __: times.append(t))
    assert times == [1.0, 0.25, 0.0]


class Brightness(Evaluator):
    """Its number, its row in the terminal, its part of the page and its curve in training."""

    title = "Brightness"
    scores: ClassVar = {"brightness": Score(("value",), "higher")}
    curve = "brightness"

    def measure(self, samples):
        return {"value": float(samples.pictures.float().mean())}

    def figures(self, found):
        return [Figure("Brightness", found["value"], "The mean of all pixels.")]


def test_an_evaluator(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(EVALUATORS, "brightness", Brightness())
    plan = ("evaluate.every=1", "evaluate.metrics=[brightness]", "train.steps=1")
    config = toy(*plan)
    assert train(config, evaluate=lambda: during_training(config)) == 0
    [record] = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert 0 <= record["brightness/ema"] <= 255
    figures = tmp_path / "found.json"
    command = ["evaluate", str(tmp_path / "run"), "--metrics", "brightness", "--num-samples", "4",
               "--report", str(tmp_path / "page"), "--json", str(figures)]  # fmt: skip
    with pytest.raises(SystemExit) as exit_:
        main(command)
    assert not exit_.value.code
    assert "Brightness" in capsys.readouterr().out
    assert "brightness" in figures.read_text(encoding="utf-8")
    assert "The mean of all pixels." in (tmp_path / "page" / "index.html").read_text("utf-8")


@dataclass(frozen=True)
class OneLayer(LoraSettings):
    """LoRA of a single layer, at a scale of its own."""

    strength: Annotated[float, "How much of the change counts."] = 1.0

    @property
    def scale(self) -> float:
        return self.strength

    def attach(self, network, seed):
        network.requires_grad_(False)
        layer = network.final_layer.linear
        up, down = torch.zeros(layer.out_features, 1), torch.ones(1, layer.in_features)
        add(layer, LowRank("final_layer.linear", down, up, self.scale), 0.0)


def test_an_adapter(monkeypatch, toy, tmp_path, module):
    monkeypatch.setitem(ADAPTERS, "one-layer", f"{module(OneLayer=OneLayer)}:OneLayer")
    base = tmp_path / "base"
    assert train(toy("train.steps=1", f"output_dir={base}")) == 0
    losses = trained(
        toy, tmp_path, f"train.init_from={base}", "train.adapter={kind: one-layer, strength: 0.5}"
    )
    assert len(losses) == 2
    kept = checkpoints.load(tmp_path / "run" / "diffusion-2.pt")["model"]
    assert {name.rpartition(".")[0] for name in kept} == {"network.final_layer.linear"}


def test_a_format_of_lora_files(monkeypatch, tmp_path):
    """Written, and read again as what it is."""
    own = Format(DIFFUSERS, "dit.", ".lora_down.weight", ".lora_up.weight", ".alpha")
    monkeypatch.setitem(FORMATS, "mine", own)
    change = LowRank("final_layer.linear", torch.randn(2, 8), torch.randn(4, 2), 0.5)
    path = tmp_path / "mine.safetensors"
    write_lora(path, [change], "mine")
    (found,) = read_lora(path).changes
    assert found.layer == change.layer
    torch.testing.assert_close(found.change(), change.change())


def test_a_command(monkeypatch):
    def greet(name: str) -> None:
        """Says hello."""
        print(f"hello {name}")

    monkeypatch.setattr(app, "registered_commands", [*app.registered_commands])
    app.command()(greet)
    assert CliRunner().invoke(app, ["greet", "Flux"]).output == "hello Flux\n"


def test_every_row_of_contributing_has_its_test():
    table = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = table.partition("## What one may add")[2].partition("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 9
    named = {name.removeprefix("test_").replace("_", " ") for name in globals()}
    assert [row for row in rows if row not in named] == []
