"""What a run records: means over the steps since the last record, in metrics.jsonl and TensorBoard.

Sums are kept on the device and read when a record is due, so no step waits for the device.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.files import AppendedFile
from fluxsmith.training.board import Board
from fluxsmith.training.objective import Losses

QUARTILES = 4
PARTS = [QUARTILES, QUARTILES, 2, 1]  # losses and their number by quartile; norms and theirs; bad
MOST = 1e300  # larger than any figure of a run


class Window:
    """The sums since the last record: loss and count by quartile of t, the gradient norm, and the
    number of steps skipped because they were not finite, which count in none of the others."""

    def __init__(self, device: torch.device | str) -> None:
        # One tensor, so that a GPU is asked once for all of it.
        self.totals = torch.zeros(sum(PARTS), device=device, dtype=torch.float32)
        self._sums, self._counts, self._norms, skipped = self.totals.split(PARTS)
        self._skipped = skipped[0]

    @torch.no_grad()
    def add(self, losses: Losses, norm: Tensor, good: Tensor) -> None:
        """A step's losses, its gradient's norm, and whether it was finite: () bool."""
        quartile = (losses.t * QUARTILES).long().clamp(0, QUARTILES - 1)  # (b,)
        member = quartile[:, None] == torch.arange(QUARTILES, device=quartile.device)  # (b, 4)
        # where, since the product of 0 and a NaN is a NaN
        self._sums += torch.where(good, losses.values, 0) @ member.to(losses.values.dtype)
        self._counts += member.sum(0) * good
        self._norms[0] += torch.where(good, norm, 0)
        self._norms[1] += good
        self._skipped += ~good

    def means(self) -> dict[str, float]:
        """The means, after which the window is empty again. Waits for the device."""
        found = self.totals.cpu().split(PARTS)
        sums, counts, norms, (skipped,) = (part.tolist() for part in found)
        self.totals.zero_()
        record: dict[str, float] = {"skipped_steps": int(skipped)} if skipped else {}
        if not norms[1]:
            return record
        record |= {"loss": sum(sums) / sum(counts), "grad_norm": norms[0] / norms[1]}
        for i, (total, count) in enumerate(zip(sums, counts, strict=True)):
            if count:
                record[f"loss_q{i + 1}"] = total / count
        return record

    def state_dict(self) -> dict[str, Tensor]:
        parts = {
            "sums": self._sums,
            "counts": self._counts,
            "norms": self._norms,
            "skipped": self._skipped,
        }
        # Views of one tensor would be saved as such, where a copy of the state is not.
        return {name: part.clone() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._sums.copy_(state["sums"])
        self._counts.copy_(state["counts"])
        self._norms.copy_(state["norms"])
        self._skipped.copy_(state.get("skipped", torch.zeros(())))


class Recorder:
    """metrics.jsonl, one object a record, and TensorBoard, which is always made from it.

    A resumed run drops what was recorded past its checkpoint, so every step is there once. What
    can't be written ends no run: `say` tells why, and it is tried again with the next record.
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
        """Before a checkpoint, so that a loss of power leaves no hole in the records."""
        self._attempt("metrics.jsonl", self._metrics.flush_to_disk)

    def _show(self, write: Callable[[Board], None]) -> None:
        """Writes to TensorBoard; after a failure, all of it anew, which has this record too."""

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
        """Whether it was written; says so when that changes."""
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
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_record(record):
            records.append(record)
    return records


def _is_record(found: object) -> bool:
    """Whether it is what `Recorder` writes: finite numbers by name, of a step."""
    if not isinstance(found, dict) or type(found.get("step")) is not int:
        return False
    numbers = all(type(value) in (int, float) for value in found.values())
    return numbers and 0 <= found["step"] < 2**63 and all(-MOST < v < MOST for v in found.values())


def _line(record: Mapping[str, float]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def pictures(folder: Path) -> Iterator[tuple[int, Path]]:
    """The sample grids in a run's folder, by step."""
    for path in folder.glob("sample-*.png"):
        if match := re.fullmatch(r"sample-(\d{1,18})\.png", path.name):
            yield int(match[1]), path
