"""Compiled blocks: the same results, an exact resume, a fallback, and who gets them."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import randomise, same

from fluxsmith.kernels.compiling import pays, prepare_compiling
from fluxsmith.kernels.cpu import features
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.run import build_trainer, compile_for_training, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """What is compiled here is kept for the other tests of this module, and nowhere else."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        patch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # workers take longer to start
        yield folder


# Compiling takes half a minute a kind of block; one kind shows what there is to show.
SINGLE = "model.depth=0"


def trainer_of(config):
    trainer = build_trainer(config, CPU)
    randomise(trainer.pipeline)  # a new network would predict 0 whatever its input
    lines = compile_for_training(trainer.pipeline, trainer.captions)
    assert bool(lines) == config.train.compile
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_losses_and_gradients_are_those_of_the_plain_path(toy, tmp_path, adapter):
    beside = ()
    if adapter == "lora":
        assert train(toy(SINGLE, "train={steps: 1, batch_size: 8}", "evaluate.every=0")) == 0
        beside = (f"train.init_from={tmp_path / 'run'}", "train.adapter.kind=lora")
    found = []
    for compiles in ("false", "true"):
        trainer = trainer_of(toy(SINGLE, f"train.compile={compiles}", *beside))
        example = trainer.objective.draw(trainer.loader.batch(0), torch.Generator().manual_seed(1))
        losses = trainer.objective.losses(trainer.objective.prepare(example)).total
        trained = [p for p in trainer.pipeline.parameters() if p.requires_grad]
        found.append([losses, *torch.autograd.grad(losses.mean(), trained)])
    for plain, compiled in zip(*found, strict=True):
        scale = float(plain.detach().abs().max())
        torch.testing.assert_close(compiled, plain, atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.slow
def test_compiled_pictures_are_those_of_the_plain_path(toy):
    pipeline = trainer_of(toy(SINGLE, "train.compile=false")).pipeline
    prompts = ["one", "2", "seven"]  # a full batch, and one picture more
    plain = Sampler(pipeline).generate(prompts, steps=2, batch_size=2)
    assert prepare_compiling(CPU) == ""
    sampler = Sampler(pipeline, compile=True)
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    drawn = sampler.generate(prompts, steps=2, batch_size=2)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > counted
    torch.testing.assert_close(drawn, plain, atol=1e-5, rtol=1e-5)
    assert torch.equal(Sampler(pipeline).generate(prompts, steps=2, batch_size=2), plain)


@pytest.mark.slow
def test_a_resumed_run_is_the_run_to_the_bit(toy, tmp_path):
    plan = (
        SINGLE, "train.compile=true", "train.checkpoint_every=1", "train.keep_checkpoints=0",
        "train.steps=4", "train.sample_every=2",
    )  # fmt: skip
    assert train(toy(*plan)) == 0
    folder = tmp_path / "run"
    whole = checkpoints.load(checkpoints.newest(folder))
    picture = (folder / "sample-4.png").read_bytes()
    for step in (3, 4):
        checkpoints.checkpoint_path(folder, step).unlink()
    torch._dynamo.reset()  # as in a new process
    assert train(toy(*plan), resume="auto") == 0
    resumed = checkpoints.load(checkpoints.newest(folder))
    for key in ("model", "ema", "optimizer", "window"):
        assert same(whole[key], resumed[key]), key
    assert (folder / "sample-4.png").read_bytes() == picture


@pytest.mark.slow
def test_without_a_compiler_training_goes_on_and_says_so(toy_file, tmp_path):
    command = [sys.executable, "-m", "fluxsmith", "train", str(toy_file)]
    done = subprocess.run(
        [*command, "train.compile=true", "train.steps=1"],
        env={**os.environ, "CXX": "/no/such", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "not possible" in line]
    ours = ["C++"] if features.vectors() else []
    assert [line.split()[0] for line in lines] == [*ours, "compile"]
    assert (tmp_path / "run" / "diffusion-1.pt").is_file()


@pytest.mark.parametrize(
    ("device", "operations", "shapes", "expected"),
    [
        ("cpu", 1e16, 1, True),
        ("cpu", 1e16, 99, False),
        ("cpu", 1e12, 1, False),
        ("cuda", 1e30, 1, False),
    ],
)
def test_auto_compiles_long_runs_of_few_shapes_on_a_cpu(device, operations, shapes, expected):
    assert pays(torch.device(device), operations, shapes) is expected
