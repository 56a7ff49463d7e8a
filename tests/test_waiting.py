"""The host never waits for a GPU inside a training step or between the steps of a solver, so that
launches run ahead of the device."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from fluxsmith.flow.solvers import euler, uniform_grid
from fluxsmith.sampling.generate import Sampler
from fluxsmith.training.run import build_trainer, compile_for_training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@contextmanager
def never_waiting() -> Iterator[None]:
    """Whatever makes the host wait inside is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_waiting_would_be_noticed():
    x = torch.ones(3, device="cuda")
    with never_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        float(x.sum())


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("train.precision=bfloat16",),
        ("train.cuda_graphs=true",),
        ("train.accumulate=2", "data.flip=true"),
        ("data.source=colored-digits", "train.batch_size=64"),  # captions of several lengths
        ("train.compile=true", "train.cuda_graphs=true"),
    ],
    ids=" ".join,
)
def test_a_training_step_never_waits(toy, overrides):
    trainer = build_trainer(toy("train.precision=float32", *overrides), torch.device("cuda"))
    compile_for_training(trainer.pipeline, trainer.captions)
    trainer.train_step()  # makes the tables that every step uses
    with never_waiting():
        trainer.train_step()
        trainer.train_step()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_solver_never_waits(pipeline, guidance):
    pipeline = pipeline.to("cuda")
    cond = pipeline.encode_text(["3", "four"])
    velocity = Sampler(pipeline).guided_velocity(cond, guidance)
    eps = torch.randn(2, *pipeline.latent_shape, device="cuda")
    with torch.no_grad():
        euler(velocity, eps, uniform_grid(1))
        with never_waiting():
            euler(velocity, eps, uniform_grid(4))
