"""What a person sees of long work: a progress bar in a terminal, a line now and then in a file."""

import contextlib
import os
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 15


class _Terminal(Console):
    """Printing goes on without an error when the reader of a pipe is gone."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class ProgressConsole:
    """Shows what is done and the time left. If the terminal is gone, the work goes on."""

    def __init__(self) -> None:
        self.console = _Terminal(highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, left="")
        self._began = time.monotonic()
        self._last_line = -float("inf")

    def __enter__(self) -> "ProgressConsole":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._progress.stop()

    def report(self, text: str, left: float | None, last: bool = False) -> None:
        """What is going on, and the seconds that are left, None where nobody knows yet. A file
        gets a line if the last one is some time ago, or if it is the `last` one."""
        now = time.monotonic()
        elapsed = now - self._began
        in_words = "" if left is None else f"{int(left) // 60}:{int(left) % 60:02d} left"
        self._progress.update(
            self._task,
            description=text,
            left=in_words,
            completed=elapsed,
            total=None if left is None else elapsed + left,
        )
        due = last or now - self._last_line >= SECONDS_BETWEEN_LINES
        if not self.console.is_terminal and due:
            self._last_line = now
            self.say(f"{text}  {in_words}".rstrip())

    def say(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self.console.print(line, markup=False)


class TrainingConsole(ProgressConsole):
    """Shows step, loss, images/s and time left."""

    def __init__(self, steps: int, start: int) -> None:
        super().__init__()
        self._steps, self._start = steps, start
        self._figures = "loss –"

    def __enter__(self) -> "TrainingConsole":
        super().__enter__()
        return self

    def advance(self, step: int) -> None:
        """`step` steps are done: the bar moves, and no line is written."""
        if self.console.is_terminal:
            self._show(step)

    def show(self, step: int, loss: float | None, images_per_second: float) -> None:
        """New figures, which is where the loss is read; None where no step was finite."""
        figure = "not finite" if loss is None else f"{loss:.4f}"
        self._figures = f"loss {figure}  {images_per_second:.0f} images/s"
        self._show(step)

    def _show(self, step: int) -> None:
        done = max(1, step - self._start)
        left = (time.monotonic() - self._began) / done * (self._steps - step)
        text = f"step {step}/{self._steps}  {self._figures}"
        self.report(text, left, last=step == self._steps)


def in_words(seconds: float) -> str:
    """A time as a person says it."""
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 2:
        return f"{seconds:.0f} s"
    if hours < 2:
        return f"{minutes:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
