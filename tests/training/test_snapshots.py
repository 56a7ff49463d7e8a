"""Snapshots: the average at many steps, small, and without a change to the run."""

from itertools import pairwise

import pytest
import torch
from helpers import same

from fluxsmith.errors import UserError
from fluxsmith.interop.open_pipeline import TextToImage
from fluxsmith.parallel.ranks import Ranks
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.run import train
from fluxsmith.training.snapshots import FOLDER, REQUEST, Snapshots, snapshot_steps


def test_steps_lie_closer_at_the_start_and_end_with_the_run():
    steps = sorted(snapshot_steps(800, 24))
    assert steps[0] == 1 and steps[-1] == 800 and len(steps) <= 24
    gaps = [b - a for a, b in pairwise(steps)]
    assert gaps == sorted(gaps)
    assert snapshot_steps(800, 0) == set()


def test_a_run_keeps_its_averages_and_is_the_same_run(toy, tmp_path):
    settings = "train.checkpoint_every=2", "train.keep_checkpoints=0"
    train(toy(*settings, f"output_dir={tmp_path / 'plain'}"))
    train(toy(*settings, "train.snapshots=4", f"output_dir={tmp_path / 'kept'}"))
    plain, kept = (checkpoints.load(tmp_path / n / "diffusion-6.pt") for n in ("plain", "kept"))
    assert same(plain["model"], kept["model"]) and same(plain["ema"], kept["ema"])
    there = dict(checkpoints.find(tmp_path / "kept" / FOLDER))
    assert set(there) == snapshot_steps(6, 4)
    small = checkpoints.load(there[6])
    assert small["optimizer"] == {}
    rounded = {name: x.bfloat16().float() for name, x in kept["ema"].items()}
    assert same(small["ema"], rounded)
    TextToImage.from_checkpoint(there[1]).generate(["3"], steps=1)


def test_a_resumed_run_drops_those_of_a_course_that_it_does_not_take(toy, tmp_path):
    run = tmp_path / "run"
    plan = "train.checkpoint_every=2", "train.snapshots=4", f"output_dir={run}"
    train(toy(*plan))
    (run / "diffusion-6.pt").unlink()
    (run / FOLDER / ".diffusion-5.pt.tmp").touch()
    train(toy(*plan, "train.learning_rate=1e-4", "train.steps=5"), resume="auto")
    there = {step for step, _ in checkpoints.find(run / FOLDER)}
    assert 6 not in there and 1 in there and 5 in there
    assert not list((run / FOLDER).glob(".*"))


def test_a_place_that_is_taken_by_a_file_is_told_in_a_line(toy, tmp_path):
    (tmp_path / FOLDER).touch()
    snapshots = Snapshots(tmp_path, toy("train.snapshots=1").train, Ranks(), whole=True)
    with pytest.raises(UserError, match=r"can't write to .*; set output_dir"):
        snapshots.keep(6, dict)


def test_one_is_kept_where_it_is_asked_for(toy, tmp_path):
    config = toy("train.snapshots=1").train
    whole = {
        "format": checkpoints.FORMAT,
        "step": 3,
        "images_seen": 0,
        "config": {},
        "ema": {"a": torch.ones(2)},
        "metadata": {},
    }
    assert not Snapshots(tmp_path, config, Ranks(), whole=False).steps
    snapshots = Snapshots(tmp_path, config, Ranks(), whole=True)
    snapshots.keep(3, lambda: whole)
    assert not (tmp_path / FOLDER).exists()
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / REQUEST).touch()
    snapshots.keep(3, lambda: whole)
    assert [step for step, _ in checkpoints.find(tmp_path / FOLDER)] == [3]
    assert not (tmp_path / FOLDER / REQUEST).exists()
