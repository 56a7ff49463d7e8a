"""Steps whose loss or gradient is not finite never reach the weights; many in a row end the run.

The verdict stays on the device. A CPU reads it at once; elsewhere that would make every step wait,
so there the update itself is masked and the count is read now and then.
"""

import torch
from torch import Tensor

from fluxsmith.training.objective import Losses


class Guard:
    """Judges steps and counts the bad ones in a row."""

    def __init__(self, limit: int, device: torch.device) -> None:
        self.limit = limit
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def judge(self, losses: Losses, norm: Tensor) -> Tensor:
        """Whether the step is finite: () bool, on the device."""
        good = norm.isfinite() & losses.values.isfinite().all()
        self.in_a_row.add_(1).mul_(~good)  # in place, where a CUDA graph looks
        return good

    def exhausted(self, step: int, waits: bool) -> bool:
        """Whether the last `limit` steps were bad; asked only every `limit` steps where nobody
        waits for a step's verdict."""
        if not waits and step % self.limit:
            return False
        return int(self.in_a_row) >= self.limit

    def state_dict(self) -> dict[str, Tensor]:
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.in_a_row.copy_(state.get("in_a_row", torch.zeros(())))
