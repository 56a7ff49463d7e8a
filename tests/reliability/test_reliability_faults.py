"""Disks that fill up, folders that go away, files that can't be written: a run outlives them."""

import contextlib
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import same
from made_pictures import as_classes, as_shards, items
from reliability.comparing import COURSE, KEEP, steps_on_board, steps_recorded

from fluxsmith.errors import UserError
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.recorder import read_metrics
from fluxsmith.training.run import build_trainer, train
from fluxsmith.training.saving import Saver

resource = pytest.importorskip("resource", reason="needs POSIX limits")


def steps_saved(folder):
    """The steps of the checkpoints in a folder, each of which loads."""
    for _, path in checkpoints.find(folder):
        checkpoints.load(path)
    return [step for step, _ in checkpoints.find(folder)]


def nothing_half_written(folder):
    return not list(folder.glob(".*.tmp"))


def wait_for_checkpoint():
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


@contextlib.contextmanager
def small_files_only(size=2**20):
    """Too small for a checkpoint. A soft limit of this process, as `ulimit` sets it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_file_size_limit_costs_one_checkpoint_and_no_run(
    eventful, run_folder, capsys, background
):
    stack = contextlib.ExitStack()
    happenings = {
        3: lambda: (wait_for_checkpoint(), stack.enter_context(small_files_only(500))),
        5: lambda: (wait_for_checkpoint(), stack.close()),
    }
    with stack:
        assert eventful(happenings, *KEEP, f"train.background_save={background}") == 0
    printed = capsys.readouterr().out
    assert printed.count("can't write the checkpoint") == 1
    assert "diffusion-4.pt: File too large" in printed
    assert f"the last good checkpoint is {run_folder / 'diffusion-2.pt'}" in printed
    assert "tries again at the next interval" in printed
    assert steps_saved(run_folder) == [2, 6]
    assert nothing_half_written(run_folder)
    assert steps_recorded(run_folder) == [1, 2, 3, 4, 5, 6]  # they waited in memory
    assert steps_on_board(run_folder) == [1, 2, 3, 4, 5, 6]


def test_a_run_may_be_told_to_stop_for_it(eventful, run_folder):
    with small_files_only(), pytest.raises(UserError) as caught:
        eventful({}, *KEEP, "train.on_save_error=stop")
    assert "diffusion-2.pt: File too large; the last good checkpoint is none" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert nothing_half_written(run_folder)


def test_the_last_checkpoint_has_no_next_interval(eventful, run_folder):
    """Whatever the policy, a run that could not be saved has not ended well."""
    stack = contextlib.ExitStack()
    limit = {5: lambda: (wait_for_checkpoint(), stack.enter_context(small_files_only()))}
    with stack, pytest.raises(UserError, match=r"diffusion-6\.pt: File too large"):
        eventful(limit, *KEEP)
    assert steps_saved(run_folder) == [2, 4]
    assert nothing_half_written(run_folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_without_space(eventful, run_folder, capsys):
    """The temporary file leads to /dev/full, which any process may find full."""
    temporary = checkpoints.temporary_path(run_folder / "diffusion-2.pt")
    assert eventful({1: lambda: temporary.symlink_to("/dev/full")}, *KEEP) == 0
    assert "diffusion-2.pt: No space left on device" in capsys.readouterr().out
    assert steps_saved(run_folder) == [4, 6]
    assert nothing_half_written(run_folder)


def test_a_folder_that_vanishes_is_made_again(eventful, run_folder):
    happenings = {3: lambda: (wait_for_checkpoint(), shutil.rmtree(run_folder))}
    assert eventful(happenings, *KEEP) == 0
    assert steps_saved(run_folder) == [4, 6]
    assert steps_recorded(run_folder) == [3, 4, 5, 6]


def test_a_folder_in_whose_place_there_is_a_file(eventful, run_folder, capsys):
    def replace():
        wait_for_checkpoint()
        shutil.rmtree(run_folder)
        run_folder.write_text("in the way")

    happenings = {3: replace, 5: lambda: (wait_for_checkpoint(), run_folder.unlink())}
    assert eventful(happenings, *KEEP) == 0
    printed = capsys.readouterr().out
    assert "metrics.jsonl can't be written" in printed
    assert "metrics.jsonl is written again" in printed
    assert steps_saved(run_folder) == [6]
    assert steps_recorded(run_folder) == [3, 4, 5, 6]


def test_tensorboard_that_can_not_be_written_costs_nothing(eventful, run_folder, capsys):
    boards = run_folder / "tensorboard"

    def obstruct():
        shutil.rmtree(boards)
        boards.write_text("in the way")

    # its file is open to be appended to and can be made again, until its folder is another thing
    assert eventful({2: obstruct, 4: boards.unlink}) == 0
    printed = capsys.readouterr()
    assert printed.out.count("tensorboard can't be written") == 1
    assert "tensorboard is written again" in printed.out
    assert "Traceback" not in printed.out + printed.err
    assert steps_recorded(run_folder) == [1, 2, 3, 4, 5, 6]
    assert steps_on_board(run_folder) == [1, 2, 3, 4, 5, 6]


def test_a_picture_that_can_not_be_written_costs_nothing(eventful, run_folder, capsys):
    happenings = {1: (run_folder / "sample-2.png").mkdir}
    assert eventful(happenings, "train.sample_every=2") == 0
    assert "training goes on" in capsys.readouterr().out
    pictures = {p.name for p in run_folder.glob("sample-*.png") if p.is_file()}
    assert pictures == {"sample-4.png", "sample-6.png"}


def test_a_clock_that_jumps(eventful, run_folder, monkeypatch):
    """A year ahead, a day back: nothing is timed by it, and nothing is ordered by it."""
    true, calls = time.time, iter(range(10**9))
    jumps = (0, 365 * 86400, -86400, -20 * 365 * 86400)
    monkeypatch.setattr(time, "time", lambda: true() + jumps[next(calls) % len(jumps)])
    assert eventful({}, *KEEP, "train.steps=4", "train.schedule=constant") == 0
    assert eventful({}, *KEEP, "train.steps=8", "train.schedule=constant", resume="auto") == 0
    records = read_metrics(run_folder / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 9))
    assert all(r["images_per_second"] > 0 for r in records)
    assert steps_on_board(run_folder) == list(range(1, 9))


def test_data_files_that_disappear_once_read_cost_nothing(eventful, run_folder, tmp_path):
    data = as_classes(tmp_path / "data", items(20), ["cat", "dog"])
    plan = ("data.source=folder", f"data.path={data}")
    assert eventful({2: lambda: shutil.rmtree(data)}, *plan) == 0
    assert steps_saved(run_folder) == [6]


@pytest.mark.parametrize("source", ["folder", "webdataset"])
def test_pictures_that_disappear_while_they_are_read_cost_no_step(
    eventful, toy, run_folder, tmp_path, source
):
    """The run ends and saves what was trained; with the pictures back it goes on to the bit."""
    data, away = tmp_path / "data", tmp_path / "away"
    plan = (
        f"data.source={source}", f"data.path={data}", "data.workers=1", "train.steps=12",
        "train.log_every=1",
    )  # fmt: skip
    if source == "folder":
        as_classes(data, items(40), ["cat", "dog"])
        plan = (*plan, "data.in_memory=false")
    else:
        pytest.importorskip("webdataset")
        as_shards(data, items(40), 20)
        plan = (*plan, "data.shuffle_buffer=4")
    with pytest.raises(UserError, match=r"can.t (be used|read).*; what was trained is") as caught:
        eventful({3: lambda: data.rename(away)}, *plan)
    [(step, saved)] = checkpoints.find(run_folder)
    assert str(saved) in str(caught.value)
    assert step >= 3
    away.rename(data)
    assert train(toy(*plan), resume="auto") == 0
    assert train(toy(*plan, f"output_dir={tmp_path / 'alone'}")) == 0
    resumed, alone = (
        checkpoints.load(f / "diffusion-12.pt") for f in (run_folder, tmp_path / "alone")
    )
    assert [key for key in COURSE if not same(resumed[key], alone[key])] == []


def test_memory_for_no_copy_of_the_state_is_no_reason_not_to_save_it(toy, run_folder):
    """Then training waits for the writing. (Here one number passes for a thousand million million;
    a copy of it would take them all, the file does not.)"""
    trainer = build_trainer(toy(), torch.device("cpu"))
    trainer.step = 2
    many = torch.zeros(1, dtype=torch.int64).expand(2**50)
    state = trainer.state_dict() | {"window": {"sums": many}}
    run_folder.mkdir()
    with Saver(run_folder, trainer.config.train, print) as saver:
        saver.save(state)
        assert steps_saved(run_folder) == [2]


def test_a_signal_just_before_a_write_begins_ends_the_run_and_no_more(toy, run_folder, monkeypatch):
    trainer = build_trainer(toy(), torch.device("cpu"))
    run_folder.mkdir()

    def signalled(thread):
        raise SystemExit(143)

    with (
        pytest.raises(SystemExit, match="143"),
        Saver(run_folder, trainer.config.train, print) as saver,
    ):
        monkeypatch.setattr(threading.Thread, "start", signalled)
        saver.save(trainer.state_dict())
    assert not list(run_folder.iterdir())
