"""Steps captured and replayed are the steps: on a GPU as CUDA graphs, on the CPU by a stand-in."""

from dataclasses import replace

import pytest
import torch
from helpers import needs_gpu, randomise, same
from kernels.fake_cuda_graph import ByOperations

from fluxsmith.cli import main
from fluxsmith.sampling.generate import Sampler
from fluxsmith.training.deterministic import deterministic
from fluxsmith.training.run import build_trainer, less_memory
from fluxsmith.training.saving import copied
from fluxsmith.training.step import Step, StepScalars
from fluxsmith.training.trainer import Trainer

CUDA = torch.device("cuda")
LONG = ("data.source=colored-digits",)  # captions of three to five tokens


@pytest.fixture(autouse=True)
def kernels_that_repeat():
    """What `fluxsmith train` does for train.deterministic."""
    with deterministic(True):
        yield


def plain(config, device) -> Trainer:
    """Its update masked, as on a GPU; its weights random, or a new network would predict 0."""
    trainer = build_trainer(config, device)
    trainer.update.host_sync = False
    randomise(trainer.pipeline)
    trainer.ema.load({name: p.detach() for name, p in trainer.pipeline.named_parameters()})
    return trainer


def on_the_same_terms(trainer: Trainer) -> Trainer:
    """With inputs of a capture's shapes and numbers of its precision, without the capture."""
    prepare, descent = trainer.objective.prepare, trainer.step_on_device

    def descend(step: Step) -> None:
        numbers = torch.tensor([step.scalars.rate, step.scalars.share])
        descent(replace(step, scalars=StepScalars(*numbers.to(trainer.pipeline.device))))

    trainer.objective.prepare = lambda example, alike: prepare(example, alike=True)
    trainer.step_on_device = descend
    return trainer


def graphed(config, device) -> Trainer:
    trainer = plain(config, device)
    if device.type == "cpu":
        trainer.capture_steps(ByOperations())
    assert trainer.graphed is not None
    return trainer


def configs(toy, device, *overrides):
    """Without graphs and with them. The CPU's trainer is told of its capture otherwise."""
    settings = [f"device={device}", *overrides]
    return toy(*settings), toy(*settings, f"train.cuda_graphs={device.type == 'cuda'}".lower())


def everything(trainer: Trainer) -> dict:
    """All that a step changes."""
    state = copied(trainer.state_dict())
    return {key: state[key] for key in ("step", "model", "ema", "optimizer", "window")}


def assert_same_run(trainer: Trainer, other: Trainer) -> None:
    """To the bit on the CPU. A GPU may take other kernels for a capture; then by what was learned,
    for AdamW goes by rounding alone where a gradient is 0, as that of a key's bias."""
    one, two = everything(trainer), everything(other)
    if trainer.pipeline.device.type == "cpu":
        assert same(one, two)
        return
    assert one["step"] == two["step"]
    torch.testing.assert_close(one["window"], two["window"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(velocity(trainer), velocity(other), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def velocity(trainer: Trainer) -> torch.Tensor:
    pipeline = trainer.pipeline
    cond = pipeline.encode_text(["a red three on blue", "7 in white on black"])
    x = torch.randn(2, *pipeline.latent_shape, generator=torch.Generator().manual_seed(0))
    return pipeline.velocity(x.to(pipeline.device), torch.tensor(0.5), cond).cpu()


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("train.precision=bfloat16", "train.grad_clip=0.01", "data.flip=true"),
        pytest.param((*LONG, "train.accumulate=4", "train.grad_clip=0"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_run_of_replayed_steps_is_the_run(toy, device, overrides):
    """Through warm-up and tail of the learning rate and the average's warm-up: what a graph would
    hold on to would show."""
    config, other = configs(toy, device, "train.steps=8", *overrides)
    one, two = on_the_same_terms(plain(config, device)), graphed(other, device)
    for _ in range(8):
        assert one.train_step() == two.train_step()
    assert_same_run(one, two)
    assert len(two.graphed.graphs) > 0


def test_inputs_alike_are_the_inputs(toy, device):
    """Rows of text that nobody asked for change neither losses nor gradients."""
    trainer = build_trainer(toy(*LONG, "train.batch_size=16", f"device={device}"), device)
    randomise(trainer.pipeline)
    objective = trainer.objective
    draw = torch.Generator(device).manual_seed(0)
    example = objective.draw(trainer.loader.batch(0), draw)
    found = []
    for alike in (False, True):
        inputs = objective.prepare(example, alike)
        losses = objective.losses(inputs).total
        parameters = list(trainer.pipeline.parameters())
        found.append([losses, *torch.autograd.grad(losses.mean(), parameters)])
        assert len(inputs.text.codes) == (16 if alike else len(set(example.batch.captions)))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def test_a_step_is_captured_once_for_each_length_of_text(toy):
    trainer = graphed(toy(*LONG, "train.steps=100"), torch.device("cpu"))
    trainer.capture_steps(capture := ByOperations())
    for _ in range(12):
        trainer.train_step()
    assert 1 <= len(capture.captured) < 6
    assert capture.replays == 12


def test_a_bad_step_changes_nothing_and_the_next_goes_on(toy, device):
    """Capturing counts as no bad step, and a bad one as one."""
    runs = []
    for config, with_graphs in zip(configs(toy, device), (False, True), strict=True):
        make = graphed if with_graphs else plain
        trainer = make(config, device)
        if not with_graphs:
            on_the_same_terms(trainer)
        trainer.train_step()
        trainer.loader.images[0], images = (
            trainer.loader.images[0].float(),
            trainer.loader.images[0],
        )
        trainer.loader.images[0][:] = float("nan")
        before = everything(trainer)
        trainer.train_step()
        after = everything(trainer)
        for key in ("model", "ema"):
            assert same(before[key], after[key])
        assert same(before["optimizer"]["state"], after["optimizer"]["state"])
        assert int(trainer.guard.state_dict()["in_a_row"]) == 1
        assert trainer.means.means()["skipped_steps"] == 1
        assert "the loss of 8 images" in trainer.explain_bad_step()
        trainer.loader.images[0] = images
        trainer.train_step()
        assert int(trainer.guard.state_dict()["in_a_row"]) == 0
        runs.append(trainer)
    assert_same_run(*runs)


def test_a_resumed_run_is_the_run_to_the_bit(toy, device):
    """The graphs of a trainer that takes over another state read that state."""
    _, config = configs(toy, device)
    whole, before = graphed(config, device), graphed(config, device)
    for _ in range(3):
        before.train_step()
    state = copied(before.state_dict())
    for _ in range(6):
        whole.train_step()
    for resumed in (graphed(config, device), before):
        if resumed is before:
            resumed.train_step()
        resumed.load_state_dict(copied(state), "state")
        while resumed.step < 6:
            resumed.train_step()
        assert same(everything(whole), everything(resumed))


def test_no_state_shows_that_there_were_graphs(toy, device):
    """A rate and a flag of a capture's belong into no checkpoint."""
    for config, graphs_too in zip(configs(toy, device), (False, True), strict=True):
        trainer = graphed(config, device) if graphs_too else plain(config, device)
        rates = [trainer.train_step() for _ in range(2)]
        for group in trainer.state_dict()["optimizer"]["param_groups"]:
            assert (group["lr"], group["capturable"]) == (rates[-1], False)


def test_pictures_between_steps_change_nothing(toy, device):
    """The average stands in for the weights meanwhile, and goes back to its place."""
    _, config = configs(toy, device)
    one, two = graphed(config, device), graphed(config, device)
    for _ in range(4):
        one.train_step()
        two.train_step()
        with two.held.holding(two.ema.weights):
            Sampler(two.pipeline).generate(["3", "a long one"], steps=2)
    assert same(everything(one), everything(two))


def test_without_a_gpu_they_are_refused(toy_file, capsys):
    arguments = ["train", str(toy_file), "train.cuda_graphs=true", "device=cpu"]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        "error: train.cuda_graphs=true: needs a CUDA GPU, and this run is on cpu; leave it out\n"
    )


@pytest.mark.parametrize("overrides", [(), ("train.batch_size=1",)], ids=" ".join)
def test_the_advice_of_a_run_without_memory_names_them(toy, overrides):
    assert less_memory(toy("train.cuda_graphs=true", *overrides)).startswith(
        "set train.cuda_graphs=false or "
    )
    assert "cuda_graphs" not in less_memory(toy(*overrides))


@pytest.mark.gpu
@needs_gpu
def test_compiled_blocks_are_captured_too(toy):
    from fluxsmith.training.run import compile_for_training

    settings = ("device=cuda", "train.compile=true")
    config, other = toy(*settings), toy(*settings, "train.cuda_graphs=true")
    one, two = on_the_same_terms(plain(config, CUDA)), plain(other, CUDA)
    for trainer in (one, two):
        assert len(compile_for_training(trainer.pipeline, trainer.captions)) == 1
        for _ in range(6):
            trainer.train_step()
    assert_same_run(one, two)
    assert len(two.graphed.graphs) == 1
