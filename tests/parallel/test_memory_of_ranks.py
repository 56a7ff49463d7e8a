"""A network that no rank has memory for trains where ranks hold a share of it each."""

import multiprocessing
import os
import resource
from pathlib import Path

import pytest
from parallel.launching import Ranks, write_config

from fluxsmith.kernels.memory import keep_freed_memory
from fluxsmith.storage import checkpoint as checkpoints

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.slow,
]

NETWORK = {"hidden_size": 384, "num_heads": 6, "depth": 6, "depth_single_blocks": 12,
           "axes_dim": [16, 24, 24]}  # fmt: skip
PARAMETERS = 59e6
SHORT = {"steps": 2, "batch_size": 4, "checkpoint_every": 0, "sample_every": 0,
         "deterministic": False}  # fmt: skip


def allow(each):
    """Lets this process allocate so many bytes for each parameter, beside what it has."""
    keep_freed_memory()  # as a run before it may have left the process
    has = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
    most = has + int(each * PARAMETERS)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def run(folder, size):
    """The exit codes of so many ranks, and what they printed."""
    write_config(
        folder, model=NETWORK, train=SHORT, evaluate={"every": 0},
        parallel={"shard": size, "pieces": 2},
    )  # fmt: skip
    ranks = Ranks(folder, size, "train", "toy.yaml", each=lambda rank: allow(20))
    return ranks.wait(600), ranks.told()


def test_a_network_that_does_not_fit_one_rank_trains_on_two(tmp_path):
    """Whole it takes 20 bytes a parameter: weights, gradients, moments and average in float32."""
    # Forked from a process that did nothing else: what many tests before leave behind is not ours.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        codes, told = pool.apply(run, (tmp_path / "1", 1))
        assert codes == [2], told
        assert "error: out of memory with train.batch_size=4" in told
        codes, told = pool.apply(run, (tmp_path / "2", 2))
    assert codes == [0, 0], told
    state = checkpoints.load(checkpoints.newest(tmp_path / "2" / "run"))
    assert sum(x.numel() for x in state["model"].values()) > 0.99 * PARAMETERS
