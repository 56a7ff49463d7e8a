"""Commands run in forked processes, which have everything imported already."""

import contextlib
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from fluxsmith.cli import main


def fork(work: Callable[[], object]) -> int:
    """A new process, by its id, that does the work and ends without cleaning up after pytest."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def forked(work: Callable[[], object]) -> int:
    """The exit code of the work, done in a process of its own; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])


class Life:
    """A process that runs one command; what it prints goes to `log`."""

    def __init__(
        self, log: Path, *arguments: object, prepare: Callable[[], object] = lambda: None
    ) -> None:
        def work() -> None:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            faulthandler.enable(2)  # pytest's own would write to its terminal
            prepare()
            # pytest has put its own objects in the place of these
            sys.stdout = open(1, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
            main([str(argument) for argument in arguments])

        self.log = log
        self.pid = fork(work)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ended(self) -> bool:
        """Whether it is over; `wait` can still be asked for its exit code."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, seconds: float = 60) -> int:
        """Its exit code, negative for a signal."""
        end = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < end:
            time.sleep(0.005)
        in_time = self.ended()
        if not in_time:
            self.send(signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert in_time, f"it did not end in time: {self.text()}"
        return code

    def until(self, condition: Callable[[], object], seconds: float = 60) -> None:
        """Waits for the condition while the process lives."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"it did not happen in time: {self.text()}"
            assert not self.ended(), self.text()
            time.sleep(0.002)

    def text(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.log.read_text(encoding="utf-8")
        return ""
