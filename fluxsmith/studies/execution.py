"""A plan's runs, made: each an ordinary training in a folder and a process of its own, then
measured. A run is done when its `evaluation.json` has all drawings; it is written whole or not at
all: killed anywhere, a study goes on, and nothing is repeated or half counted.
"""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import torch

from fluxsmith.config import show
from fluxsmith.errors import UserError
from fluxsmith.evaluation.report.page import write_json
from fluxsmith.evaluation.samples import Reference
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.files import make_folder, read_whole, write_text
from fluxsmith.storage.tensor_files import DamagedFileError
from fluxsmith.studies.measuring import (
    as_wanted,
    code_digest,
    measured,
    rehearse,
    undrawn,
    wanted,
)
from fluxsmith.studies.planning import Plan, Run
from fluxsmith.training.console import ProgressConsole
from fluxsmith.training.lock import is_taken
from fluxsmith.training.recorder import read_metrics

DIVERGED = "(train.max_bad_steps)"  # in the line with which such a training ends
LOOK = 0.5  # seconds between looks at the processes
MOSTLY = 0.9  # the share of a run's time that its training takes


class Outcome(NamedTuple):
    """What became of a run: `done`, `diverged`, `failed`, `unmeasured` where it is trained and
    drawings are lacking, or `missing` where it was not made."""

    state: str
    found: dict[str, Any]  # its evaluation.json, of the drawings those that are still wanted
    failure: dict[str, Any]  # its exit code and last line


class Stopped(BaseException):
    """A signal that asks the study to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def outcome(plan: Plan, run: Run) -> Outcome:
    found = read_whole(plan.run_folder(run) / "evaluation.json") or {}
    there = {name: as_wanted(found, name, asked) for name, asked in wanted(plan, run).items()}
    known = found and found | {"drawings": {name: each for name, each in there.items() if each}}
    if not undrawn(plan, run):
        return Outcome("done", known, {})
    if failure := read_whole(plan.beside(run, "failed.json")):
        state = "diverged" if DIVERGED in failure["last_line"] else "failed"
        return Outcome(state, known, failure)
    return Outcome("unmeasured" if found or is_trained(plan, run) else "missing", known, {})


def is_trained(plan: Plan, run: Run) -> bool:
    """Whether its newest checkpoint is its last one, by the name."""
    steps = plan.arms[run.arm].config.train.steps
    return any(step >= steps for step, _ in checkpoints.find(plan.run_folder(run)))


def to_do(plan: Plan) -> list[Run]:
    """The runs that are not done, and those again that failed but did not diverge."""
    return [run for run in plan.runs if outcome(plan, run).state not in ("done", "diverged")]


def execute(plan: Plan, jobs: int, console: ProgressConsole) -> None:
    """Makes and measures the runs that are not done, and those again that failed but did not
    diverge: whatever made them fail may be mended. Raises `Stopped` when a signal came, and a
    UserError where the disk is full; the runs then end after a step, and go on when this is called
    again."""
    waiting = to_do(plan)
    killed = set[Run]()
    progress = _Progress(plan, len(waiting))
    running: dict[Run, subprocess.Popen[bytes]] = {}
    references: dict[str, Reference] = {}
    with _stoppable():
        if waiting:
            rehearse(plan, references, console)
        try:
            while waiting or running:
                while waiting and len(running) < jobs and _free(plan, waiting[0], console):
                    run = waiting.pop(0)
                    running[run] = _start(plan, run, jobs, console)
                for run in [run for run, process in running.items() if process.poll() is not None]:
                    code = running.pop(run).returncode
                    if code < 0 and run not in killed:  # by the system, for want of memory
                        console.say(f"{run} was ended by signal {-code}; it is tried once more")
                        killed.add(run)
                        waiting.append(run)
                        continue
                    if code and not _free(plan, run, console):  # one from before was quicker
                        waiting.append(run)
                        continue
                    _finish(plan, run, code, references, console)
                    progress.done += 1
                progress.report(running, console)
                time.sleep(LOOK)
        finally:
            _end(running)


class _Progress:
    """What is done, and the time left if all runs take alike."""

    def __init__(self, plan: Plan, todo: int) -> None:
        self.plan, self.todo, self.done, self.began = plan, todo, 0, time.monotonic()

    def report(self, running: Iterable[Run], console: ProgressConsole) -> None:
        share, told = float(self.done), []
        for run in running:
            records = read_metrics(self.plan.run_folder(run) / "metrics.jsonl")
            last = next((r for r in reversed(records) if "loss" in r), {"step": 0})
            steps = self.plan.arms[run.arm].config.train.steps
            share += MOSTLY * last["step"] / steps
            told.append(f"{run} at step {last['step']} of {steps}")
        spent = time.monotonic() - self.began
        left = spent * (self.todo / share - 1) if share > 0.1 else None
        runs = len(self.plan.runs)
        console.report(f"{runs - self.todo + self.done} of {runs} runs  {', '.join(told)}", left)


def _start(plan: Plan, run: Run, jobs: int, console: ProgressConsole) -> "subprocess.Popen[bytes]":
    """The training of a run, in a session of its own, so that a Ctrl-C reaches it only by us."""
    folder, config = plan.run_folder(run), plan.beside(run, "yaml")
    make_folder(folder.parent, "the study's name")
    began_before = config.exists()
    write_text(config, show(plan.config_of(run), comments=False))
    plan.beside(run, "failed.json").unlink(missing_ok=True)
    how = ["--resume", "auto"]
    there = [path for _, path in checkpoints.find(folder)]
    if there and not any(map(_is_whole, there)):
        console.say(f"{run}: no checkpoint in {folder} is whole, so the run is made again")
        how = ["--overwrite"]
    elif began_before and not there:
        console.say(f"{run}: no checkpoint is in {folder}, so the run is made from its beginning")
    code, anew = plan.beside(run, "code"), not there or "--overwrite" in how
    if anew:
        (folder / "evaluation.json").unlink(missing_ok=True)
        code.unlink(missing_ok=True)
    if anew or not is_trained(plan, run):
        with open(code, "a", encoding="utf-8") as stream:
            stream.write(f"{code_digest()}\n")
    command = [sys.executable, "-m", "fluxsmith", "train", str(config), *how]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())} if jobs > 1 else {}
    with open(plan.beside(run, "log"), "wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=os.environ | threads, start_new_session=True,
        )  # fmt: skip


def _is_whole(path: Path) -> bool:
    try:
        checkpoints.load(path, in_shares=True)
    except DamagedFileError:
        return False
    return True


def _finish(
    plan: Plan, run: Run, code: int, references: dict[str, Reference], console: ProgressConsole
) -> None:
    """Measures what was trained, or records why there is nothing to measure."""
    try:
        if code:
            raise UserError(_last_line(plan.beside(run, "log")))
        console.report(f"{run}: measuring", None)
        found = measured(plan, run, references)
    except Exception as error:  # whatever it is, the other runs are made
        line = f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if os.strerror(errno.ENOSPC) in line:  # which would end the other runs too
            raise UserError(f"{run}: {line}; make room, and the same command goes on") from None
        failure = {"exit_code": code, "last_line": line.partition("\n")[0]}
        what = f"failed, exit code {code}" if code else "could not be measured"
        console.say(f"{run} {what}: {failure['last_line']}")
        write_text(plan.beside(run, "failed.json"), json.dumps(failure) + "\n")
        return
    folder = plan.run_folder(run)
    write_json(folder / "evaluation.json", found)
    checkpoints.prune(folder, keep=1, keep_every=0)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


def _free(plan: Plan, run: Run, console: ProgressConsole) -> bool:
    """Whether nobody writes to the run's folder: its training may have outlived a study that was
    killed, and is waited for."""
    taken = is_taken(plan.run_folder(run))
    if taken:
        console.report(f"{run}: its training still goes on from before", None)
    return not taken


def _end(running: "dict[Run, subprocess.Popen[bytes]]") -> None:
    """Lets every training finish its step and write its checkpoint; a second signal does not wait
    for them."""
    for process in running.values():
        process.terminate()
    for process in running.values():
        process.wait()


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Inside, Ctrl-C, SIGTERM and a closed terminal raise `Stopped`."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(number)

    hangup = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
    numbers = {signal.SIGINT, signal.SIGTERM, hangup}
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
