"""Compiled blocks: the same results, an exact resume, a fallback, and who gets them."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import randomise, same

from fluxsmith import checkpoint as checkpoints
from fluxsmith import processor
from fluxsmith.compiling import prepare_compiling, uncompiled
from fluxsmith.model.rope import rotary_table, rotate
from fluxsmith.training.compiling import compile_for_training, pays
from fluxsmith.training.run import build_trainer, train

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


def loss_and_gradients(trainer):
    draw = torch.Generator().manual_seed(1)
    example = trainer.objective.draw(trainer.loader.batch(0), draw)
    losses = trainer.objective.losses(trainer.objective.prepare(example)).values
    losses.mean().backward()
    return losses.detach(), {n: p.grad for n, p in trainer.pipeline.named_parameters()}


def test_losses_and_gradients_are_those_of_the_plain_path(toy):
    plain, compiled = (trainer_of(toy(SINGLE, f"train.compile={way}")) for way in ("false", "true"))
    (losses, gradients), (again, others) = map(loss_and_gradients, (plain, compiled))
    torch.testing.assert_close(again, losses, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(others[name], gradient, atol=1e-5 * scale, rtol=1e-5)
    prompts = ["one", "2"]
    with uncompiled():
        drawn = compiled.pipeline.generate(prompts)
    assert torch.equal(drawn, plain.pipeline.generate(prompts))


def test_compiled_pictures_are_those_of_the_plain_path(toy):
    pipeline = trainer_of(toy(SINGLE, "train.compile=false")).pipeline
    prompts = ["one", "2", "seven"]  # a full batch, and one picture more
    plain = pipeline.generate(prompts, steps=2, batch_size=2)
    assert prepare_compiling(CPU) == ""
    pipeline.compiles = True
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    drawn = pipeline.generate(prompts, steps=2, batch_size=2)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > counted
    torch.testing.assert_close(drawn, plain, atol=1e-5, rtol=1e-5)
    pipeline.compiles = False
    assert torch.equal(pipeline.generate(prompts, steps=2, batch_size=2), plain)


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
    ours = ["C++"] if processor.has_avx512() else []
    assert [line.split()[0] for line in lines] == [*ours, "compile"]
    assert (tmp_path / "run" / "diffusion-1.pt").is_file()


def test_auto_compiles_long_runs_alone(toy):
    short, long = (build_trainer(toy(f"train.steps={n}"), CPU) for n in (10, 10**9))
    assert not pays(short.pipeline, short.captions)
    assert compile_for_training(short.pipeline, short.captions) == []
    assert pays(long.pipeline, long.captions)


def test_both_forms_of_the_rotation_agree():
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(3.0), torch.arange(4.0))
    table = rotary_table(ids, (2, 4, 6), 10_000)
    x = torch.randn(2, 5, 12, 12, generator=torch.Generator().manual_seed(0))
    real = torch.compile(rotate, backend="eager")(x, table)  # is_compiling() as it is traced
    torch.testing.assert_close(rotate(x, table), real, atol=1e-6, rtol=1e-6)
