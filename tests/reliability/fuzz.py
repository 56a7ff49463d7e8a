"""Nonsense by the thousand: whatever a user or a file says, the answer is a result or one line.

    python -m tests.reliability.fuzz --inputs 20000

Nothing may hang, crash, end in a traceback, run code, write outside the folder at hand, or take
more than MEMORY more than was taken before. What fails is printed with the seed that repeats it.
Inputs are tried in forked processes, a few hundred in each, so none outlives what it has done.
"""

import argparse
import contextlib
import errno
import json
import logging
import os
import random
import select
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fluxsmith.errors import UserError
from tests.reliability.targets import MOST, SHARES, Targets, Unexpected

MEMORY = 2**30  # bytes
SECONDS = 20  # for one input
IN_A_PROCESS = 400


@contextlib.contextmanager
def in_time(seconds: int) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise Unexpected(f"it took over {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def memory() -> int:
    """The most that this process has taken so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def chosen(number: int, seed: int, only: str | None) -> tuple[str, random.Random]:
    """The target of an input, and what it is drawn with."""
    names = [name for name in vars(Targets) if not name.startswith("_")]
    wheel = [name for name in names for _ in range(SHARES.get(name, MOST))]
    random.Random(0).shuffle(wheel)
    return only or wheel[number % len(wheel)], random.Random(f"{seed}/{number}")


def outcome(targets: Targets, name: str, draw: random.Random) -> str | None:
    """What is wrong with the outcome, if anything is."""
    try:
        with in_time(SECONDS):
            getattr(targets, name)(draw)
    except UserError as error:
        lines = [str(message) for message in error.args]
        if not lines or not all(line.strip() for line in lines):
            return "an empty message"
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return None  # for which the command line has a line
        return f"{type(error).__name__}: {str(error)[:300]}"
    if (targets.folder / "executed").exists():
        return "it ran code"
    return None


def try_some(
    targets: Targets, numbers: Sequence[int], seed: int, only: str | None, report: int
) -> None:
    """In a process of its own: a line of JSON before and after each input goes to `report`."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    before, outside = memory(), targets.folder.parent
    there = set(outside.iterdir())
    for number in numbers:
        name, draw = chosen(number, seed, only)
        os.write(report, _line([number, name]))
        began = time.monotonic()
        problem = outcome(targets, name, draw)
        if problem is None and set(outside.iterdir()) != there:
            problem = "it wrote outside its folder"
        more = memory() - before
        if problem is None and more > MEMORY:
            problem = f"it took {more / 2**20:.0f} MiB more"
        os.write(report, _line([number, name, problem, more, time.monotonic() - began]))
        if more > MEMORY:
            return  # the next process begins anew


def _line(found: object) -> bytes:
    return json.dumps(found).encode() + b"\n"


def lines_from(reader: int, pid: int) -> Iterator[list[object]]:
    """What a process reports, to its end; one that hangs is killed."""
    left = b""
    while True:
        if not select.select([reader], [], [], 2 * SECONDS)[0]:
            os.kill(pid, signal.SIGKILL)
        got = os.read(reader, 2**16)
        if not got:
            return
        *whole, left = (left + got).split(b"\n")
        yield from map(json.loads, whole)


def fuzz(
    inputs: int, seed: int, parent: Path, only: str | None = None, within: float = float("inf")
) -> dict[str, object]:
    """Tries so many inputs, spread over the targets, and counts them; or as many as it can within
    so many seconds."""
    folder = parent / "work"
    folder.mkdir()
    os.chdir(folder)
    os.environ |= {"HF_HUB_OFFLINE": "1", "FLUXSMITH_CACHE": str(folder / "home")}
    os.environ["HF_DATASETS_CACHE"] = str(folder / "home" / "datasets")
    targets = Targets(folder)
    tried, seconds = Counter[str](), Counter[str]()
    failures: list[str] = []
    most, left = 0, list(range(inputs))
    end = time.monotonic() + within
    while left and time.monotonic() < end:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                try_some(targets, left[:IN_A_PROCESS], seed, only, writer)
            finally:
                os._exit(0)
        os.close(writer)
        under_way: list[object] = []
        for line in lines_from(reader, pid):
            under_way = line if len(line) == 2 else []
            if under_way:
                continue
            number, name, problem, more, took = line
            left.remove(number)
            tried[name] += 1
            seconds[name] += took
            most = max(most, more)
            if problem:
                failures.append(_told(f"--only {name} --seed {seed} --input {number}: {problem}"))
        os.close(reader)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        so_far = f"{sum(tried.values()):,} inputs, {most / 2**20:.0f} MiB more memory at most"
        print(so_far, file=sys.stderr, flush=True)
        if under_way:
            number, name = under_way
            left.remove(number)
            tried[name] += 1
            repeat = f"--only {name} --seed {seed} --input {number}"
            failures.append(_told(f"{repeat}: it ended with {status}"))
    return {
        "tried": dict(tried),
        "failures": failures,
        "more memory, MiB": round(most / 2**20),
        "seconds by target": {name: round(took, 1) for name, took in seconds.most_common()},
    }


def _told(failure: str) -> str:
    print(failure, file=sys.stderr, flush=True)
    return failure


def command_line() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one target")
    parser.add_argument("--within", type=float, default=float("inf"), help="stop after seconds")
    parser.add_argument("--input", type=int, help="this one alone, with its traceback")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    began, here = time.monotonic(), Path.cwd()
    with tempfile.TemporaryDirectory() as parent:
        if options.input is not None:
            os.chdir(parent)
            name, draw = chosen(options.input, options.seed, options.only)
            getattr(Targets(Path(parent)), name)(draw)
            sys.exit("a result")
        found = fuzz(options.inputs, options.seed, Path(parent), options.only, options.within)
        os.chdir(here)
    total = sum(found["tried"].values())
    print(json.dumps({**found, "inputs": total, "seconds": round(time.monotonic() - began, 1)}))
    sys.exit(1 if found["failures"] else 0)


if __name__ == "__main__":
    command_line()
