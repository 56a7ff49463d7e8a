"""Ranks that die take the others with them, and nothing is lost; a signal to one stops all."""

import os
import random
import signal
import time

import pytest
from parallel.launching import Ranks, write_config
from parallel.test_same_run import assert_same_checkpoints, beside_checkpoints, run
from reliability.comparing import left_behind

from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

KILLS = int(os.environ.get("RANK_KILLS", "4"))
LONG = {"train": {"steps": 10**6, "checkpoint_every": 2, "keep_checkpoints": 2, "sample_every": 0}}


def saved(folder):
    return [step for step, _ in checkpoints.find(folder / "run")]


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_is_killed_takes_the_others_with_it(tmp_path, victim):
    write_config(tmp_path, **LONG)
    ranks = Ranks(tmp_path, 2, "train", "toy.yaml")
    ranks.lives[victim].until(lambda: saved(tmp_path), 200)
    ranks.lives[victim].send(signal.SIGKILL)
    codes = ranks.wait()
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
    assert ranks.wait(120) == [128 + number] * 2, ranks.told()
    assert "stopped after step" in ranks.logs[0]
    step = saved(tmp_path)[-1]
    again = Ranks(tmp_path, 2, "train", "toy.yaml", f"train.steps={step + 2}", "--resume", "auto")
    assert again.wait() == [0, 0], again.logs
    assert saved(tmp_path)[-1] == step + 2


@pytest.mark.slow
@pytest.mark.parametrize("shard", [1, 2])
def test_killed_at_random_it_always_ends_with_the_same_bytes(tmp_path, shard):
    """Replicated, in files, and sharded, in folders; RANK_KILLS=100 for the long form."""
    draw = random.Random(f"ranks {shard}")
    plan = {"steps": 24, "sample_every": 6, "keep_checkpoints": 3}
    alone = run(tmp_path / "alone", 1, train=plan)
    kills = round_ = 0
    while kills < KILLS:
        round_ += 1
        folder = tmp_path / str(round_)
        form = {"checkpoint_format": "sharded"} if shard > 1 else {}
        write_config(folder, train=plan | form, parallel={"shard": shard})
        while True:
            ranks = Ranks(folder, 2, "train", "toy.yaml", "--resume", "auto")
            victim = draw.randrange(2)
            if kills < KILLS:
                ranks.lives[0].until(lambda ranks=ranks: ranks.logs[0], 300)  # they have met
                time.sleep(draw.uniform(0, 5))
                ranks.lives[victim].send(signal.SIGKILL)
            codes = ranks.wait(120 if kills < KILLS else 600)
            for _, path in checkpoints.find(folder / "run"):
                checkpoints.load(path)  # whole, or this raises
            if 0 in codes:  # it was over before
                assert codes[1 - victim] == 0, ranks.told()
                break
            assert codes[victim] == -signal.SIGKILL, ranks.told()
            kills += 1
        assert beside_checkpoints(left_behind(folder / "run")) == beside_checkpoints(alone)
        assert_same_checkpoints(folder / "run", tmp_path / "alone" / "run")


def never_comes_back(where):
    """Has the second rank sleep in a method of the trainer; all give up after fifteen seconds."""

    def each(rank):
        os.environ["FLUXSMITH_STUCK_SECONDS"] = "15"
        if rank == 1:
            setattr(Trainer, where, lambda *_: time.sleep(1000))

    return each


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shard", "where", "call"),
    [
        (1, "next_batch", "the agreement before a step"),
        (1, "_noise", "the sum of gradients"),
        (2, "_noise", "a step of the cut network"),
    ],
)
def test_what_hangs_is_named(tmp_path, shard, where, call):
    write_config(tmp_path, parallel={"shard": shard})
    ranks = Ranks(tmp_path, 2, "train", "toy.yaml", each=never_comes_back(where))
    assert ranks.wait(120) == [1, 1], ranks.told()
    lines = [line for log in ranks.logs for line in log.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert f"rank 0 waits in {call} for" in lines[0]
    assert "rank 1 computes or reads" in lines[0]


def fails_in_a_step(rank):
    from fluxsmith.errors import UserError

    plain = Trainer._noise

    def noise(trainer, piece):
        if rank == 1 and trainer.step == 3:
            raise UserError("no memory for this piece")
        return plain(trainer, piece)

    Trainer._noise = noise


def test_what_fails_in_a_step_of_one_rank_is_told_at_once(tmp_path):
    """Though the other one waits for its gradients."""
    write_config(tmp_path)
    ranks = Ranks(tmp_path, 2, "train", "toy.yaml", each=fails_in_a_step)
    assert ranks.wait(60) == [2, 2], ranks.told()
    lines = [x for log in ranks.logs for x in log.splitlines() if x.startswith("error:")]
    assert lines == ["error: rank 1: no memory for this piece"]
    assert saved(tmp_path) == [2]
