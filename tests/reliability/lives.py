"""A command run in a forked process, which has everything imported already."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fluxsmith.cli import main


class Life:
    """A process that runs one command; what it prints goes to `log`."""

    def __init__(
        self, log: Path, *arguments: object, prepare: Callable[[], None] = lambda: None
    ) -> None:
        self.log = log
        self.pid = os.fork()
        if self.pid == 0:
            self._live([str(argument) for argument in arguments], prepare)

    def _live(self, arguments: list[str], prepare: Callable[[], None]) -> None:
        code = 1
        try:
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            prepare()
            # of its own: a test runner has put something in memory in their place
            sys.stdout = open(1, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
            main(arguments)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        except BaseException:
            import traceback

            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 60) -> int:
        """Its exit code, negative for a signal."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        self.send(signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"it did not end in time: {self.text()}")

    def until(self, condition: Callable[[], object], seconds: float = 60) -> None:
        """Waits for the condition while the process lives."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"it did not happen in time: {self.text()}"
            assert os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, (
                self.text()
            )
            time.sleep(0.002)

    def text(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.log.read_text(encoding="utf-8")
        return ""
