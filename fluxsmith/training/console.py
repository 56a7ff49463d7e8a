"""What a person sees of a run: a progress bar in a terminal, a line now and then in a file."""

import contextlib
import os
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15


class _Terminal(Console):
    """A run goes on when whoever read what it prints has left."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class TrainingConsole:
    """Shows step, loss, images/s and time left. A terminal that is gone ends no run."""

    def __init__(self, steps: int, start: int) -> None:
        self.console = _Terminal(highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]} images/s"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=60,
        )
        self._task = self._progress.add_task("", total=steps, completed=start, loss="–", speed="–")
        self._steps, self._start, self._began = steps, start, time.monotonic()
        self._last_line = -float("inf")

    def __enter__(self) -> "TrainingConsole":
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

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        self._progress.update(self._task, completed=step)

    def show(self, step: int, loss: float | None, images_per_second: float) -> None:
        """New figures, which is where the loss is read; None where no step was finite."""
        figure = "not finite" if loss is None else f"{loss:.4f}"
        self._progress.update(
            self._task, completed=step, loss=figure, speed=f"{images_per_second:.0f}"
        )
        now = time.monotonic()
        due = now - self._last_line >= SECONDS_BETWEEN_LINES or step == self._steps
        if not self.console.is_terminal and due:
            self._last_line = now
            left = (now - self._began) / (step - self._start) * (self._steps - step)
            self.say(
                f"step {step}/{self._steps}  loss {figure}  {images_per_second:.0f} images/s  "
                f"{int(left) // 60}:{int(left) % 60:02d} left"
            )

    def say(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self.console.print(line, markup=False)
