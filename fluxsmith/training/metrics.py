"""What a run records: means over the steps since the last record, in metrics.jsonl and TensorBoard.

Sums are kept on the device and read when a record is due, so no step waits for the device.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxsmith.training.objective import Losses

QUARTILES = 4


class Window:
    """The sums since the last record: loss and count by quartile of t, and the gradient norm."""

    def __init__(self, device: torch.device | str) -> None:
        self._sums = torch.zeros(QUARTILES, device=device, dtype=torch.float32)
        self._counts = torch.zeros(QUARTILES, device=device, dtype=torch.float32)
        self._norms = torch.zeros(2, device=device, dtype=torch.float32)  # sum, number

    @torch.no_grad()
    def add_losses(self, losses: Losses) -> None:
        quartile = (losses.t * QUARTILES).long().clamp(0, QUARTILES - 1)  # (b,)
        member = F.one_hot(quartile, QUARTILES).to(losses.values.dtype)  # (b, 4)
        self._sums += losses.values @ member
        self._counts += member.sum(0)

    @torch.no_grad()
    def add_norm(self, norm: Tensor) -> None:
        self._norms[0] += norm
        self._norms[1] += 1

    def means(self) -> dict[str, float]:
        """The means, after which the window is empty again. Waits for the device."""
        sums, counts, norms = self._sums.tolist(), self._counts.tolist(), self._norms.tolist()
        for tensor in (self._sums, self._counts, self._norms):
            tensor.zero_()
        record = {"loss": sum(sums) / sum(counts), "grad_norm": norms[0] / norms[1]}
        for i, (total, count) in enumerate(zip(sums, counts, strict=True)):
            if count:
                record[f"loss_q{i + 1}"] = total / count
        return record

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self._sums, "counts": self._counts, "norms": self._norms}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._sums.copy_(state["sums"])
        self._counts.copy_(state["counts"])
        self._norms.copy_(state["norms"])


class Recorder:
    """metrics.jsonl, one object a record, and TensorBoard.

    A resumed run drops what was recorded past its checkpoint, so every step is there once.
    """

    def __init__(self, folder: Path, resumed_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.jsonl"
        _keep_up_to(self.path, resumed_at)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1)

    def write(self, step: int, record: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **record}) + "\n")
        self._file.flush()
        for key, value in record.items():
            board = "evaluate" if "/" in key else "train"  # evaluators name theirs metric/figure
            self._board.add_scalar(f"{board}/{key}", value, step)

    def write_picture(self, step: int, picture: Any) -> None:
        """A (h, w, 3) uint8 array."""
        self._board.add_image("samples", picture, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a metrics.jsonl; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _keep_up_to(path: Path, step: int) -> None:
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in kept)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
