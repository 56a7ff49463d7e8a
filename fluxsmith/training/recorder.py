"""What a run leaves on record: metrics.jsonl, and TensorBoard's file made from it."""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fluxsmith.errors import UserError
from fluxsmith.storage.files import AppendedFile
from fluxsmith.training.board import Board

LARGEST = 1e300  # above any figure of a run


class Recorder:
    """metrics.jsonl, one object a record, and TensorBoard's file, which is made from it.

    A resumed run drops what was recorded past its checkpoint, so every step is there once. If
    something can't be written, `say` tells why, and it is tried again with the next record.
    """

    def __init__(
        self, folder: Path, resumed_at: int, say: Callable[[str], object] = lambda line: None
    ) -> None:
        self.folder = folder
        kept = [r for r in read_metrics(folder / "metrics.jsonl") if r["step"] <= resumed_at]
        self._metrics = AppendedFile(folder / "metrics.jsonl", b"".join(map(_line, kept)))
        self._say = say
        self._failing: set[str] = set()
        self._board: Board | None = None
        self._attempt("TensorBoard", self._start_board)

    def write(self, step: int, record: Mapping[str, float]) -> None:
        finite = {key: value for key, value in record.items() if math.isfinite(value)}
        line = _line({"step": step, **finite})
        if self._attempt("metrics.jsonl", lambda: self._metrics.append(line)):
            self._show(lambda board: board.write(step, finite))
        else:
            self._board = None  # to be made again when metrics.jsonl is whole

    def write_picture(self, step: int, png: Path) -> None:
        self._show(lambda board: board.write_picture(step, png))

    def flush_to_disk(self) -> None:
        """Before a checkpoint, so that no record is lost with the power."""
        self._attempt("metrics.jsonl", self._metrics.flush_to_disk)

    def _show(self, write: Callable[[Board], None]) -> None:
        """Writes to TensorBoard; after a failure its whole file is made anew from metrics.jsonl."""

        def show() -> None:
            board, self._board = self._board, None
            if board is None:
                self._start_board()
            else:
                write(board)
                self._board = board

        self._attempt("TensorBoard", show)

    def _start_board(self) -> None:
        board = Board(self.folder / "tensorboard")
        for record in read_metrics(self._metrics.path):
            board.write(int(record.pop("step")), record)
        for step, png in sorted(pictures(self.folder)):
            board.write_picture(step, png)
        self._board = board

    def _attempt(self, what: str, write: Callable[[], object]) -> bool:
        """Whether it could be written; `say` tells when that changes."""
        try:
            write()
        except (OSError, UserError) as error:
            if what not in self._failing:
                reason = getattr(error, "strerror", None) or error
                self._say(f"{what} can't be written: {reason}; training goes on and tries again")
            self._failing.add(what)
            return False
        if what in self._failing:
            self._say(f"{what} is written again")
        self._failing.discard(what)
        return True


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
