"""Ctrl-C, SIGTERM and a closed terminal end a run after the current step; a second signal ends it
at once."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType


class Interrupt:
    """The signal that asked the run to stop, if one did."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def number(self) -> int:
        """The signal's; 0 without one."""
        return self.signal or 0

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it: 130 for Ctrl-C."""
        return 128 + self.number if self else 0

    def heard(self, number: int) -> bool:
        """Whether to stop, where this is the signal that came to any rank. One that has come here
        since the ranks agreed counts at their next agreement: now the others would go on alone."""
        if number:
            self.signal = signal.Signals(number)
        return bool(number)

    def __bool__(self) -> bool:
        return self.signal is not None


def _leave(echo_until: float, number: int, frame: FrameType | None) -> None:
    if time.monotonic() < echo_until:
        return
    raise SystemExit(128 + number)  # unlike the default, this lets files be cleaned up


@contextmanager
def watch(speaks: bool = True, echo: float = 0.0) -> Iterator[Interrupt]:
    """Inside, the first SIGINT, SIGTERM or SIGHUP is noted, and said; the second one ends the
    process, unless it comes within `echo` seconds: one signal may reach a rank twice, by itself and
    from its launcher."""
    interrupt = Interrupt()
    watched = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none, and nohup ignores it
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        watched.append(hangup)
    before = {number: signal.getsignal(number) for number in watched}

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.signal, until = signal.Signals(number), time.monotonic() + echo
        for watched_number in watched:
            signal.signal(watched_number, partial(_leave, until))
        with contextlib.suppress(OSError):  # a terminal that is gone can't be written to
            os.write(2, b"\nfinishing this step; once more to stop at once\n" if speaks else b"")

    for number in watched:
        signal.signal(number, note)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
