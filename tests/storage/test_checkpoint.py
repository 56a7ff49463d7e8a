"""A checkpoint is whole or absent, holds plain data only, and runs nothing that it holds."""

import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from helpers import same

from fluxsmith.errors import UserError
from fluxsmith.storage.checkpoint import (
    FORMAT,
    KEYS,
    checkpoint_path,
    find,
    load,
    newest,
    prune,
    save,
)


def contents(**changes: object) -> dict:
    """A tiny checkpoint of everything that a real one holds."""
    weights = {"network.img_in.weight": torch.arange(6.0).view(2, 3), "text.scale": torch.ones(2)}
    return {
        "format": FORMAT,
        "step": 3,
        "images_seen": 192,
        "config": {"seed": 0, "data": {"source": "digits", "path": None}, "betas": [0.9, 0.95]},
        "model": weights,
        "ema": OrderedDict((name, tensor / 3) for name, tensor in weights.items()),
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.full((2, 3), 1e-3)}},
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0]}],
        },
        "data": {"epoch": 0, "offset": 192, "images": 1415},
        "window": {"sums": torch.zeros(4)},
        "metadata": {"torch": "2.6", "captions": ["3", "three"]},
        **changes,
    }


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert str(path) in message
    return message


@pytest.fixture
def saved(tmp_path) -> Path:
    path = checkpoint_path(tmp_path, 3)
    save(path, contents())
    return path


def test_what_is_saved_is_loaded_also_by_torch_alone(saved, tmp_path):
    assert saved == tmp_path / "diffusion-3.pt"
    assert same(load(saved), contents())
    assert same(load(str(saved)), contents())
    assert same(torch.load(saved, weights_only=True, mmap=True), contents())


def test_saving_again_replaces_the_file(saved, tmp_path):
    save(saved, contents(step=4))
    assert load(saved)["step"] == 4
    assert names(tmp_path) == ["diffusion-3.pt"]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_required(tmp_path, key):
    path = tmp_path / "diffusion-1.pt"
    incomplete = contents()
    del incomplete[key]
    with pytest.raises(AssertionError, match=key):
        save(path, incomplete)
    assert names(tmp_path) == []
    torch.save(incomplete, path)
    assert key in refusal(path)


def test_a_folder_that_is_not_there_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="can't write"):
        save(tmp_path / "nowhere" / "diffusion-1.pt", contents())


def test_what_can_not_be_pickled_leaves_the_earlier_file_and_nothing_else(saved, tmp_path):
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError, UserError)):
        save(saved, contents(metadata=lambda: None))
    assert same(load(saved), contents())
    assert names(tmp_path) == [saved.name]


@pytest.mark.parametrize("text", ["", "just text\n", "PK\x03\x04 but no archive"])
def test_a_file_that_is_no_archive_is_refused(tmp_path, text):
    path = tmp_path / "diffusion-1.pt"
    path.write_text(text)
    refusal(path)


def test_a_missing_file_suggests_those_that_are_there(saved, tmp_path):
    assert str(saved) in refusal(tmp_path / "diffusion-4.pt")
    refusal(tmp_path / "nowhere" / "diffusion-4.pt")


@pytest.mark.parametrize(
    "other", [contents(format="fluxsmith/0"), {"state_dict": {}}, [1, 2], torch.zeros(2)]
)
def test_another_format_is_named(tmp_path, other):
    path = tmp_path / "other.pt"
    torch.save(other, path)
    assert FORMAT in refusal(path)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's folder: checkpoints of the steps 9, 10, 100, 1000, and files that are none."""
    for step in (100, 9, 1000, 10):
        checkpoint_path(tmp_path, step).touch()
    for other in ("diffusion-.pt", "diffusion-best.pt", "diffusion-7.pt.bak", "metrics.jsonl"):
        (tmp_path / other).touch()
    return tmp_path


def test_checkpoints_are_found_in_the_order_of_their_steps(run):
    assert find(run) == [(step, checkpoint_path(run, step)) for step in (9, 10, 100, 1000)]
    assert newest(run) == checkpoint_path(run, 1000)
    assert newest(checkpoint_path(run, 9)) == checkpoint_path(run, 9)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(UserError, match=f"no checkpoint in {tmp_path}"):
        newest(tmp_path)


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"),
    [
        (0, 100, [9, 10, 100, 1000]),
        (1, 0, [1000]),
        (2, 0, [100, 1000]),
        (4, 0, [9, 10, 100, 1000]),
        (1, 10, [10, 100, 1000]),
        (1, 9, [9, 1000]),
    ],
)
def test_pruning_keeps_the_newest_and_the_multiples(run, keep, keep_every, left):
    others = {file.name for file in run.iterdir()} - {path.name for _, path in find(run)}
    prune(run, keep, keep_every)
    assert [step for step, _ in find(run)] == left
    assert others <= {file.name for file in run.iterdir()}
