"""What a run leaves on record: metrics.jsonl, and what loggers such as TensorBoard make of it."""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.sampling import render
from fluxsmith.storage.files import AppendedFile, first_line, write_text
from fluxsmith.training.lock import FolderTakenError
from fluxsmith.training.loggers import LOGGERS, RunLogger

LARGEST = 1e300  # above any figure of a run


PAIRS = 4  # of pictures in a row, a teacher's and its student's


class Recorder:
    """metrics.jsonl, one object a record, and the loggers, which are made from it.

    A resumed run drops what was recorded past its checkpoint, so every step is there once. If
    a record can't be written, `say` tells why, and it is tried again with the next one.
    """

    def __init__(
        self,
        folder: Path,
        resumed_at: int,
        say: Callable[[str], object] = lambda line: None,
        loggers: Sequence[str] = ("tensorboard",),
        take: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder = folder
        self._take = take  # the folder's lock
        self._resumed_at = resumed_at
        # Those that begin a new run of theirs when they start.
        self._fresh_names = set(loggers) if resumed_at == 0 else set[str]()
        kept = [r for r in read_metrics(folder / "metrics.jsonl") if r["step"] <= resumed_at]
        self._metrics = AppendedFile(folder / "metrics.jsonl", b"".join(map(_line, kept)))
        self._say = say
        self._failing: set[str] = set()
        self._told_once = set(loggers)
        self._loggers: dict[str, RunLogger | None] = dict.fromkeys(loggers)
        for name in loggers:
            self._attempt(name, partial(self._start, name))

    def claim(self) -> None:
        """Raises a FolderTakenError where the folder was deleted and is another run's now."""
        try:
            self._take()
        except FolderTakenError:
            raise
        except UserError:  # which is told when something is written
            pass

    def write(self, step: int, record: Mapping[str, float]) -> None:
        self.claim()
        finite = {key: value for key, value in record.items() if math.isfinite(value)}
        line = _line({"step": step, **finite})
        if self._attempt("metrics.jsonl", lambda: self._metrics.append(line)):
            self._show(lambda logger: _write(logger, step, finite))
        else:  # to be made again when metrics.jsonl is whole
            self._loggers = dict.fromkeys(self._loggers)

    def write_samples(
        self,
        step: int,
        images: Tensor,
        prompts: Sequence[str],
        about: Mapping[str, Any],
        beside: Tensor | None = None,
    ) -> None:
        """Pictures (n, c, h, w) uint8 as one, with what there is to say of them in it, and their
        prompts beside it; each after the teacher's picture in `beside`, where there are any."""
        self.claim()
        path = self.folder / f"sample-{step}.png"
        sheet = render.grid(images, prompts)
        if beside is not None:
            pairs = torch.stack((beside, images), 1).flatten(0, 1)  # (2 n, c, h, w)
            captions = [name for prompt in prompts for name in (f"{prompt}, teacher", prompt)]
            sheet = render.grid(pairs, captions, columns=2 * min(PAIRS, len(prompts)))
        render.save_png(path, sheet, about)
        write_text(path.with_suffix(".txt"), "\n".join(prompts) + "\n")
        self._show(lambda logger: _write_picture(logger, step, path))

    def end(self, status: str) -> None:
        """Tells the loggers that keep such a thing how training ended: FINISHED, KILLED by a signal
        or FAILED."""
        for logger in self._loggers.values():
            if end := getattr(logger, "end", None):
                with contextlib.suppress(Exception):  # of a network: training is over
                    end(status)

    def flush_to_disk(self) -> None:
        """Before a checkpoint, so that no record is lost with the power."""
        self._attempt("metrics.jsonl", self._metrics.flush_to_disk)

    def _show(self, write: Callable[[RunLogger], None]) -> None:
        """Writes to every logger; after a failure one is made anew from metrics.jsonl."""

        def show(name: str) -> None:
            logger, self._loggers[name] = self._loggers[name], None
            if logger is None:
                self._start(name)
            else:
                write(logger)
                self._loggers[name] = logger

        for name in self._loggers:
            self._attempt(name, partial(show, name))

    def _start(self, name: str) -> None:
        logger = LOGGERS[name](self.folder, name in self._fresh_names)
        if name in self._told_once and logger.last > self._resumed_at:
            self._say(
                f"{name} keeps its records up to step {logger.last}: with other settings, those "
                f"after {self._resumed_at} are of the course before"
            )
        self._told_once.discard(name)
        for record in read_metrics(self._metrics.path):
            _write(logger, int(record.pop("step")), record)
        for step, png in sorted(pictures(self.folder)):
            _write_picture(logger, step, png)
        self._loggers[name] = logger
        self._fresh_names.discard(name)

    def _attempt(self, what: str, write: Callable[[], object]) -> bool:
        """Whether it could be written; `say` tells when that changes."""
        try:
            write()
        except Exception as error:  # of a logger's library, which may raise anything
            if what not in self._failing:
                reason = first_line(error)
                self._say(f"{what} can't be written: {reason}; training goes on and tries again")
            self._failing.add(what)
            return False
        if what in self._failing:
            self._say(f"{what} is written again")
        self._failing.discard(what)
        return True


def _write(logger: RunLogger, step: int, record: Mapping[str, float]) -> None:
    """What a logger has already it isn't given again: it is equal to the bit."""
    if step > logger.last:
        logger.write(step, record)


def _write_picture(logger: RunLogger, step: int, png: Path) -> None:
    if step > logger.last_picture:
        logger.write_picture(step, png)


class NoRecords(Recorder):
    """Of a rank that another one speaks for."""

    def __init__(self) -> None:
        pass

    def claim(self) -> None:
        pass

    def write(self, *record: Any) -> None:
        pass

    def write_samples(self, *pictures: Any) -> None:
        pass

    def flush_to_disk(self) -> None:
        pass

    def end(self, status: str) -> None:
        pass


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a metrics.jsonl; damaged lines, such as a last one cut off by a crash, are
    left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            record = json.loads(line)
            whole = type(record["step"]) is int and 0 <= record["step"] < 2**63
            if whole and all(abs(v) < LARGEST for v in record.values()):
                records.append(record)
    return records


def _line(record: Mapping[str, float]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def pictures(folder: Path) -> Iterator[tuple[int, Path]]:
    """The sample grids in a run's folder, by step."""
    for path in folder.glob("sample-*.png"):
        if match := re.fullmatch(r"sample-(\d{1,18})\.png", path.name):
            yield int(match[1]), path
