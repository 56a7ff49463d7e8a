"""Whatever a user types or a file says, the answer is a result or one line.

Never a traceback, a crash, a hang, code that runs, a file outside the folder at hand, or a gigabyte
of memory. A failure names the target and the number of its input, which repeat it.
"""

import contextlib
import errno
import logging
import os
import random
import signal
import warnings
from collections.abc import Iterator

import pytest
from reliability.lives import forked
from reliability.targets import Targets, Unexpected

from fluxsmith.errors import UserError

resource = pytest.importorskip("resource", reason="needs POSIX limits")
NAMES = [name for name in vars(Targets) if not name.startswith("_")]
MANY = int(os.environ.get("FUZZ_INPUTS", "60"))  # for each target
FIRST = int(os.environ.get("FUZZ_FIRST", "1000"))  # the number of the first of them
SECONDS = 60  # for one input
MEMORY = 2**30  # bytes above what was taken before


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "work"
    folder.mkdir()
    return Targets(folder)


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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def outcome(targets: Targets, name: str, number: int) -> str | None:
    """What is wrong with the outcome of an input, if anything is."""
    try:
        with in_time(SECONDS):
            getattr(targets, name)(random.Random(f"{name}/{number}"))
    except UserError as error:
        if not error.args or not all(str(line).strip() for line in error.args):
            return "an empty message"
    except Exception as error:
        # the command line has a message of its own for names that are too long
        if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
            return f"{type(error).__name__}: {str(error)[:300]}"
    if (targets.folder / "executed").exists():
        return "it ran code"
    if list(targets.folder.parent.iterdir()) != [targets.folder]:
        return "it wrote outside its folder"
    return None


def problems(targets: Targets, name: str, numbers: range) -> list[str]:
    """Tries these inputs in a process of their own."""

    def work() -> None:
        os.chdir(targets.folder)
        os.environ |= {"HF_HUB_OFFLINE": "1", "FLUXSMITH_CACHE": str(targets.folder / "home")}
        os.environ["HF_DATASETS_CACHE"] = str(targets.folder / "home" / "datasets")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        logging.disable()
        warnings.simplefilter("ignore")
        before = memory()
        for number in numbers:
            progress.write_text(f"it ended in input {number}")
            wrong = outcome(targets, name, number)
            if wrong is None and memory() - before > MEMORY:
                wrong = f"it took {(memory() - before) / 2**20:.0f} MiB more"
            if wrong:
                found.open("a").write(f"{name} {number}: {wrong}\n")
                before = memory()

    found, progress = targets.folder / "found.txt", targets.folder / "progress.txt"
    found.write_text("")
    code = forked(work)
    return found.read_text().splitlines() + ([f"{code}: {progress.read_text()}"] if code else [])


@pytest.mark.parametrize("name", NAMES)
def test_nonsense_gets_a_result_or_one_line(targets, name):
    assert problems(targets, name, range(3)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_much_nonsense_gets_results_or_lines(targets, name):
    assert problems(targets, name, range(FIRST, FIRST + MANY)) == []


def test_what_must_not_happen_is_noticed(tmp_path):
    class Faulty:
        folder = tmp_path / "work"

        def fails(self, draw: random.Random) -> None:
            raise KeyError("x")

        def ends(self, draw: random.Random) -> None:
            os._exit(3)

        def runs(self, draw: random.Random) -> None:
            open("executed", "w").close()

    Faulty.folder.mkdir()
    assert problems(Faulty(), "fails", range(1)) == ["fails 0: KeyError: 'x'"]
    assert problems(Faulty(), "ends", range(1)) == ["3: it ended in input 0"]
    assert problems(Faulty(), "runs", range(1)) == ["runs 0: it ran code"]
