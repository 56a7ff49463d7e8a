"""Ranks on GPUs, each with one of its own, by NCCL: the run of one GPU, and its pictures."""

import os
import subprocess
import sys

import pytest
import torch
from parallel.launching import write_config
from parallel.test_same_run import assert_same_checkpoints
from reliability.comparing import records

GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(GPUS == 0, reason="needs CUDA GPUs"),
]
two = pytest.mark.skipif(GPUS < 2, reason="needs two CUDA GPUs")


def launched(folder, ranks, *command):
    """A command on so many ranks of torchrun, each in a process that has not used CUDA before."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    return subprocess.run(
        [sys.executable, "-m", *(launcher if ranks > 1 else []), "fluxsmith", *map(str, command)],
        cwd=folder, capture_output=True, text=True, timeout=600, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def trained(folder, ranks, **sections):
    write_config(folder, **sections)
    done = launched(folder, ranks, "train", "toy.yaml", "device=cuda")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@two
@pytest.mark.parametrize("shard", [1, 2])
def test_two_gpus_leave_the_weights_and_records_of_one(tmp_path, shard):
    one = trained(tmp_path / "one", 1)
    other = trained(tmp_path / "two", 2, parallel={"shard": shard})
    assert records(one) == records(other)
    assert_same_checkpoints(one, other)


@two
def test_two_gpus_share_pictures_and_leave_those_of_one(tmp_path):
    trained(tmp_path, 1)
    drawn = []
    for ranks in (1, 2):
        out = tmp_path / f"on-{ranks}"
        given = ("run", "--num-samples", 6, "--batch-size", 2, "--device", "cuda", "--out", out)
        done = launched(tmp_path, ranks, "sample", *given)
        assert done.returncode == 0, done.stderr
        drawn.append({path.name: path.read_bytes() for path in out.rglob("*.png")})
    assert drawn[0] == drawn[1] and len(drawn[0]) == 1 + 6


@two
def test_bfloat16_in_shares_learns_what_one_gpu_learns(tmp_path):
    """Weights travel in bfloat16, and sums are the library's: alike, though not to the bit."""
    quick = {"train": {"deterministic": False, "precision": "bfloat16", "steps": 4}}
    one, other = (
        trained(tmp_path / str(ranks), ranks, parallel={"shard": ranks}, **quick)
        for ranks in (1, 2)
    )
    for a, b in zip(records(one), records(other), strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=0.02)


def test_more_ranks_than_gpus_are_refused_in_a_line(tmp_path):
    write_config(tmp_path)
    ranks = 1 << GPUS.bit_length()
    done = launched(tmp_path, ranks, "train", "toy.yaml", "device=cuda")
    assert done.returncode
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "ranks need NCCL and a CUDA GPU each" in lines[0]
    assert not (tmp_path / "run").exists()
