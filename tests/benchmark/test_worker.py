"""A side in a process of its own does what it is told, and its mistakes arrive."""

import pytest

from fluxsmith.benchmark.worker import Worker
from fluxsmith.errors import UserError

CONFIG = "configs/image/digits/tiny.yaml"
SMALL = ["train.batch_size=2", "model.hidden_size=32", "model.num_heads=2", "model.depth=1"]


def test_a_worker_trains_and_draws_and_goes():
    with Worker("ours", CONFIG, [*SMALL, "model.axes_dim=[4,6,6]"]) as worker:
        worker.train_step()
        worker.sample(["1", "2"], 2, 2.0)
        process = worker._process
    assert process.returncode is not None


def test_a_mistake_in_the_worker_is_the_users(capfd):
    pytest.importorskip("diffusers")
    with pytest.raises(UserError, match=r"model\.mlp_ratio=2\.0: diffusers' Flux has only 4\.0"):
        Worker("diffusers", CONFIG, ["model.mlp_ratio=2"])
    assert "Traceback" not in capfd.readouterr().err


def test_a_worker_that_dies_is_named(capfd):
    with pytest.raises(RuntimeError, match="the benchmark's process for nobody ended"):
        Worker("nobody", CONFIG, [])
    assert "KeyError" in capfd.readouterr().err
