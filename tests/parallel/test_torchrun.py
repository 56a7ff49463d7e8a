"""Ranks that torchrun itself starts, on one machine and as if on two, and the signals that it sends
on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from parallel.launching import free_port, write_config
from parallel.test_same_run import assert_same_checkpoints, run, same_states
from reliability.comparing import left_behind

from fluxsmith.storage import checkpoint as checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc"),
]
TRAIN = ("-m", "fluxsmith", "train", "toy.yaml", "--resume", "auto")


def launch(folder, *options, log="torchrun.txt"):
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, options), *TRAIN]
    with open(folder / log, "w") as out:
        return subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=out, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )


def ranks_of(launcher):
    """The processes of its ranks, in their order."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    found = {}
    for pid in map(int, children):
        given = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {int(e[5:]): pid for e in given if e.startswith(b"RANK=")}
    return [found[rank] for rank in sorted(found)]


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("whom", ["rank 0", "rank 1", "torchrun", "all"])
def test_a_signal_leaves_the_last_step_in_a_checkpoint(tmp_path, whom):
    """Also where it comes to a rank twice: by itself, and from torchrun."""
    plan = {"steps": 10**6, "checkpoint_every": 10**6, "log_every": 1, "sample_every": 0}
    write_config(tmp_path, train=plan)
    launcher = launch(tmp_path, "--standalone", "--nproc-per-node", 2)
    records = tmp_path / "run" / "metrics.jsonl"
    until(lambda: records.exists() and records.read_text().count("\n") > 3)
    ranks = ranks_of(launcher)
    everyone = [*ranks, launcher.pid]
    chosen = {"rank 0": ranks[:1], "rank 1": ranks[1:], "torchrun": [launcher.pid]}
    for pid in chosen.get(whom, everyone):
        os.kill(pid, signal.SIGTERM)
    assert launcher.wait(60) != 0
    log = (tmp_path / "torchrun.txt").read_text()
    ((step, path),) = checkpoints.find(tmp_path / "run")
    assert f"stopped after step {step}" in log
    assert checkpoints.load(path)["step"] == step
    assert records.read_text().count("\n") == step
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_two_machines_make_the_run_of_one_process(tmp_path):
    """As in docs/scale.md, but both are this one."""
    write_config(tmp_path, parallel={"pieces": 4, "shard": 2})
    where = ("--master-addr", "127.0.0.1", "--master-port", free_port())
    sizes = ("--nnodes", 2, "--nproc-per-node", 2)
    machines = [
        launch(tmp_path, *sizes, "--node-rank", node, *where, log=f"node-{node}.txt")
        for node in range(2)
    ]
    assert [machine.wait(180) for machine in machines] == [0, 0]
    alone = run(tmp_path / "alone", 1, parallel={"pieces": 4})
    assert same_states(left_behind(tmp_path / "run"), alone)
    assert_same_checkpoints(tmp_path / "run", tmp_path / "alone" / "run")
