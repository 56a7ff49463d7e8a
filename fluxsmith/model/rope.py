"""Axial rotary position embedding (Su et al. 2021, "RoFormer", sec. 3.4.2) over several axes.

Each axis of a token's id rotates its own slice of a head, in pairs of neighbouring channels.
"""

import torch
from torch import Tensor

# (cos, sin), each (l, k/2) or (b, 1, l, k/2)
RotaryTable = tuple[Tensor, Tensor]


@torch.inference_mode(False)  # a table first needed while sampling must serve training too
def rotary_table(ids: Tensor, axes_dim: tuple[int, ...], theta: float) -> RotaryTable:
    """The cosines and sines of every angle, from ids (l, n_axes) or (b, l, n_axes), in float32.

    Angle of pair i on an axis of width w: position * theta^(-2i/w) (RoFormer, eq. 15). Computed in
    float64, for accuracy at large positions, and on the CPU, since not every device has float64.
    """
    angles = []
    for axis, width in enumerate(axes_dim):
        frequency = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles.append(ids[..., axis].cpu().double()[..., None] * frequency)
    angle = torch.cat(angles, dim=-1)  # (l, k/2) or (b, l, k/2)
    if angle.ndim == 3:
        angle = angle[:, None]  # (b, 1, l, k/2): the same for every head
    return angle.cos().float().to(ids.device), angle.sin().float().to(ids.device)


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotates x (b, h, l, k) pair by pair, in float32, and returns it in its own dtype."""
    cos, sin = table
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (b, h, l, k/2) each
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return rotated.flatten(-2).to(x.dtype)


class RotaryCache:
    """Keeps the tables of the ids seen lately, so that each is computed once.

    Ids are recognised by identity and version, not by value: comparing values would make the host
    wait for the device. So a hit needs the same tensors again, such as `tokens.image_ids` returns.
    """

    def __init__(self, axes_dim: tuple[int, ...], theta: float, size: int = 64) -> None:
        self.axes_dim = axes_dim
        self.theta = theta
        self.size = size
        # The ids are kept with their table: while they live, no other tensor has the same id().
        self.tables: dict[tuple[int, ...], tuple[tuple[Tensor, ...], RotaryTable]] = {}

    def __call__(self, *ids: Tensor) -> RotaryTable:
        """The table of the concatenation of `ids` along the sequence."""
        if any(x.is_inference() for x in ids):  # these have no version
            return rotary_table(torch.cat(ids, dim=-2), self.axes_dim, self.theta)
        key = tuple(part for x in ids for part in (id(x), x._version))
        kept, table = self.tables.get(key, ((), None))
        if table is None or any(a is not b for a, b in zip(kept, ids, strict=True)):  # a copy's
            if len(self.tables) >= self.size:
                del self.tables[next(iter(self.tables))]
            table = rotary_table(torch.cat(ids, dim=-2), self.axes_dim, self.theta)
            self.tables[key] = (ids, table)
        return table
