"""Runs as processes: killed, signalled, short of memory, and two on one folder."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from helpers import same
from reliability.comparing import COURSE
from reliability.lives import Life

from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.recorder import read_metrics
from fluxsmith.training.run import train

resource = pytest.importorskip("resource", reason="needs POSIX limits")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
LONG = ("train.steps=100000", "train.log_every=1")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.txt"


def error_line(life):
    """The one line that a mistake gives."""
    lines = [line for line in life.text().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, life.text()
    assert "Traceback" not in life.text()
    return lines[0]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_a_signal_ends_the_step_and_saves_and_resuming_goes_on(
    toy, toy_file, run_folder, log, number, code
):
    if signal.getsignal(number) == signal.SIG_IGN:  # children inherit it, and rightly keep to it
        pytest.skip(f"{signal.Signals(number).name} is ignored here, as under nohup")
    metrics = run_folder / "metrics.jsonl"
    life = Life(log, "train", toy_file, *LONG, "train.schedule=constant")
    life.until(lambda: len(read_metrics(metrics)) >= 3)
    life.send(number)
    assert life.wait() == code
    assert "--resume auto" in life.text()
    assert "Traceback" not in life.text()
    step = checkpoints.find(run_folder)[-1][0]
    assert read_metrics(metrics)[-1]["step"] == step
    plan = ("train.schedule=constant", f"train.steps={step + 2}", "train.log_every=1")
    life = Life(log, "train", toy_file, *plan, "--resume", "auto")
    assert life.wait() == 0, life.text()
    resumed = checkpoints.load(run_folder / f"diffusion-{step + 2}.pt")
    assert train(toy(*plan, f"output_dir={run_folder.parent / 'alone'}")) == 0
    alone = checkpoints.load(run_folder.parent / "alone" / f"diffusion-{step + 2}.pt")
    assert [key for key in COURSE if not same(resumed[key], alone[key])] == []


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_second_signal_ends_a_write_at_once_without_harm(toy_file, run_folder, log, background):
    plan = (*LONG, "train.checkpoint_every=1", f"train.background_save={background}")
    life = Life(log, "train", toy_file, *plan)
    life.until(lambda: len(checkpoints.find(run_folder)) >= 2)
    life.send(signal.SIGTERM)
    life.until(lambda: "finishing this step" in life.text())
    life.send(signal.SIGTERM)
    assert life.wait() == 143
    assert not list(run_folder.glob(".*.tmp"))
    for _, path in checkpoints.find(run_folder):
        checkpoints.load(path)


def into_a_closed_pipe():
    """As `| head -1` leaves it."""
    read, write = os.pipe()
    os.dup2(write, 1)
    os.close(read)


def test_a_reader_that_has_seen_enough_ends_no_run(toy_file, run_folder, log):
    life = Life(log, "train", toy_file, prepare=into_a_closed_pipe)
    assert life.wait() == 0, life.text()
    assert checkpoints.find(run_folder)[-1][0] == 6


def test_output_cut_short_is_no_error(log):
    life = Life(log, "config", "schema", prepare=into_a_closed_pipe)
    assert life.wait() == 1
    assert life.text() == ""


def test_a_second_run_on_a_folder_is_refused_until_the_first_is_dead(
    toy_file, run_folder, log, tmp_path
):
    first = Life(log, "train", toy_file, *LONG, "train.checkpoint_every=2")
    first.until(lambda: checkpoints.find(run_folder))
    for option in (("--resume", "auto"), ("--overwrite",), ()):
        second = Life(tmp_path / "second.txt", "train", toy_file, *LONG, *option)
        assert second.wait() == 2
        assert f"{run_folder} is being written to by process {first.pid} on " in error_line(second)
    first.send(signal.SIGKILL)
    first.wait()
    assert (run_folder / ".lock").exists()  # left by the dead
    plan = ("train.steps=100000", "train.checkpoint_every=2")
    third = Life(tmp_path / "third.txt", "train", toy_file, *plan, "--resume", "auto")
    third.until(lambda: str(third.pid) in (run_folder / ".lock").read_text())
    before = checkpoints.find(run_folder)[-1]
    third.until(lambda: checkpoints.find(run_folder)[-1] > before)
    third.send(signal.SIGTERM)
    assert third.wait() == 143, third.text()
    assert not (run_folder / ".lock").exists()


def test_a_run_whose_folder_was_deleted_and_taken_by_another_stops(
    toy_file, run_folder, log, tmp_path
):
    plan = (*LONG, "train.checkpoint_every=5")
    first = Life(log, "train", toy_file, *plan)
    first.until(lambda: checkpoints.find(run_folder))
    first.send(signal.SIGSTOP)  # so that the other comes first
    os.waitid(os.P_PID, first.pid, os.WSTOPPED)
    shutil.rmtree(run_folder)
    second = Life(tmp_path / "second.txt", "train", toy_file, *plan)
    try:
        second.until(lambda: checkpoints.find(run_folder))
        first.send(signal.SIGCONT)
        assert first.wait() == 2
        assert f"is being written to by process {second.pid}" in error_line(first)
    finally:
        second.send(signal.SIGTERM)
    assert second.wait() == 143, second.text()
    steps = [record["step"] for record in read_metrics(run_folder / "metrics.jsonl")]
    assert steps == sorted(set(steps))  # none of the first run's, none lost
    assert steps[:3] == list(range(steps[0], steps[0] + 3 * steps[0], steps[0]))


def little_memory():
    """Address space for little more than what is there already."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + 2**28
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_out_of_memory_is_one_line_that_says_what_to_change(toy_file, run_folder, log):
    # the first piece is more than all there is, so that nothing small comes short
    plan = ("train.batch_size=524288", "train.accumulate=2")
    life = Life(log, "train", toy_file, *plan, prepare=little_memory)
    assert life.wait() == 2, life.text()
    line = error_line(life)
    assert "out of memory with train.batch_size=524288" in line
    assert "GiB more were needed" in line
    assert "set train.accumulate=4 (the same gradients" in line


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.depth=200", "model.hidden_size=65536", "model.num_heads=1024"),
        ("text.hidden_size=65536", "text.depth=200"),
    ],
)
def test_a_model_too_large_for_the_machine_is_refused_before_it_is_built(
    toy_file, run_folder, log, overrides
):
    life = Life(log, "train", toy_file, *overrides)
    assert life.wait() == 2, life.text()
    assert "GiB to train, and cpu has" in error_line(life)
    assert not run_folder.exists()
