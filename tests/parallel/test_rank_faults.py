"""Ranks that die take the others with them, and nothing is lost; a signal to one stops all."""

import os
import random
import signal
import time

import pytest
from parallel.launching import Ranks, write_config
from parallel.test_same_run import run
from reliability.comparing import left_behind

from fluxsmith.cli import rank_watch
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

KILLS = int(os.environ.get("RANK_KILLS", "4"))
LONG = {"train": {"steps": 10**6, "checkpoint_every": 2, "keep_checkpoints": 2, "sample_every": 0}}


def saved(folder):
    return [step for step, _ in checkpoints.find(folder / "run")]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_takes_the_others_with_it(tmp_path, victim):
    write_config(tmp_path, **LONG)
    ranks = Ranks(tmp_path, 2, "train", "toy.yaml")
    ranks.lives[victim].until(lambda: saved(tmp_path), 200)
    ranks.lives[victim].send(signal.SIGKILL)
    began = time.monotonic()
    codes = ranks.wait(30)
    assert time.monotonic() - began < 30
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1
    lines = [line for line in ranks.logs[1 - victim].splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    if victim:  # the first rank holds the store here; under torchrun another process does
        assert f"rank 1 (process {ranks.lives[1].pid} on" in lines[0]
    checkpoints.load(checkpoints.newest(tmp_path / "run"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_rank_ends_the_step_of_all(tmp_path, number):
    write_config(tmp_path, **LONG)
    ranks = Ranks(tmp_path, 2, "train", "toy.yaml")
    ranks.lives[1].until(lambda: saved(tmp_path), 200)
    ranks.lives[1].send(number)
    assert ranks.wait(120) == [128 + number] * 2, ranks.logs
    assert "stopped after step" in ranks.logs[0]
    step = saved(tmp_path)[-1]
    again = Ranks(tmp_path, 2, "train", "toy.yaml", f"train.steps={step + 2}", "--resume", "auto")
    assert again.wait() == [0, 0], again.logs
    assert saved(tmp_path)[-1] == step + 2


@pytest.mark.slow
def test_killed_at_random_it_always_ends_with_the_same_bytes(tmp_path):
    """RANK_KILLS=100 for the long form."""
    draw = random.Random("ranks")
    plan = {"train": {"steps": 24, "sample_every": 6, "keep_checkpoints": 3}}
    expected = run(tmp_path / "alone", 1, **plan)
    kills = round_ = 0
    while kills < KILLS:
        round_ += 1
        folder = tmp_path / str(round_)
        write_config(folder, **plan)
        while True:
            ranks = Ranks(folder, 2, "train", "toy.yaml", "--resume", "auto")
            if kill := kills < KILLS:
                ranks.lives[0].until(lambda ranks=ranks: ranks.logs[0], 300)  # they have met
                time.sleep(draw.uniform(0, 5))
                ranks.lives[draw.randrange(2)].send(signal.SIGKILL)
                kills += 1
            began = time.monotonic()
            codes = ranks.wait(30 if kill else 600)
            for _, path in checkpoints.find(folder / "run"):
                checkpoints.load(path)  # whole, or this raises
            if codes == [0, 0]:
                break
            assert kill, ranks.logs
            assert time.monotonic() - began < 30, ranks.logs
        assert left_behind(folder / "run") == expected


def never_reads(rank):
    """Has the second rank wait for data that never comes; all give up after three seconds."""
    rank_watch.STUCK = 3.0
    if rank == 1:
        Trainer.next_batch = lambda trainer: time.sleep(1000)


@pytest.mark.slow
def test_what_hangs_is_named(tmp_path):
    write_config(tmp_path)
    ranks = Ranks(tmp_path, 2, "train", "toy.yaml", each=never_reads)
    assert ranks.wait(120) == [1, 1], ranks.logs
    lines = [line for log in ranks.logs for line in log.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "rank 0 waits in the agreement before a step for" in lines[0]
    assert "rank 1 computes or reads" in lines[0]
