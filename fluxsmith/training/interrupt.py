"""Ctrl-C and SIGTERM end a run after the step at hand; a second one ends it at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """The signal that asked the run to stop, if one did."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it: 130 for Ctrl-C."""
        return 0 if self.signal is None else 128 + self.signal

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def watch() -> Iterator[Interrupt]:
    """Inside, the first SIGINT or SIGTERM is noted; the second acts as it does by default."""
    interrupt = Interrupt()
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in watched}

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.signal = signal.Signals(number)
        for each in watched:
            signal.signal(each, signal.SIG_DFL)

    for number in watched:
        signal.signal(number, note)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
