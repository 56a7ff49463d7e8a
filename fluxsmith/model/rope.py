"""Axial rotary position embedding (Su et al. 2021, "RoFormer", sec. 3.4.2) over several axes.

Each axis of a token's id rotates its own slice of a head, in pairs of neighbouring channels.
"""

import weakref
from typing import Any

import torch
from torch import Tensor

# (cos, sin), each (l, k/2) or (b, 1, l, k/2)
RotaryTable = tuple[Tensor, Tensor]


@torch.inference_mode(False)  # a table first needed while sampling must serve training too
def rotary_table(ids: Tensor, axes_dim: tuple[int, ...], theta: float) -> RotaryTable:
    """The cosines and sines of every angle, from ids (l, n_axes) or (b, l, n_axes), in float32.

    Angle of pair i on an axis of width w: position * theta^(-2i/w) (RoFormer, eq. 15). Computed in
    float64 on the CPU, since not every device has it and positions times frequencies want it.
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
    """Rotates x (b, h, l, k) pair by pair, in float32, and returns it in its own dtype.

    A pair is a complex number, which a rotation multiplies by cos + i sin: one pass over memory
    where real numbers take many. Compilers fuse the real form, and not the complex one.
    """
    cos, sin = table
    pairs = x.float().unflatten(-1, (-1, 2))  # (b, h, l, k/2, 2)
    if torch.compiler.is_compiling() or x.device.type not in ("cpu", "cuda"):
        even, odd = pairs.unbind(-1)
        turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return turned.flatten(-2).to(x.dtype)


class RotaryCache:
    """Remembers the tables of the ids seen lately, so that they are computed once per shape.

    Ids are recognised by identity, not by value (comparing values would wait for the device), so
    a hit needs the caller to pass the same tensors again, as `tokens.image_ids` makes easy.
    """

    def __init__(self, axes_dim: tuple[int, ...], theta: float, size: int = 64) -> None:
        self.axes_dim = axes_dim
        self.theta = theta
        self.size = size
        self._tables: dict[tuple[int, ...], tuple[list[weakref.ref[Tensor]], RotaryTable]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the tables: weak references can't be pickled, and tables are soon made anew."""
        return {**self.__dict__, "_tables": {}}

    def tables(self) -> list[RotaryTable]:
        """All that are remembered now."""
        return [table for _, table in self._tables.values()]

    def __call__(self, *ids: Tensor) -> RotaryTable:
        """The table of the concatenation of `ids` along the sequence."""
        if any(x.is_inference() for x in ids):  # these carry no version to recognise them by
            return rotary_table(torch.cat(ids, dim=-2), self.axes_dim, self.theta)
        # An id() is unique only while its object lives: the weak references tell a tensor that
        # died and whose address was used again, the version one that was written to.
        key = tuple(part for x in ids for part in (id(x), x._version))
        if key in self._tables:
            owners, table = self._tables[key]
            if all(ref() is x for ref, x in zip(owners, ids, strict=True)):
                return table
        if len(self._tables) >= self.size:
            del self._tables[next(iter(self._tables))]
        table = rotary_table(torch.cat(ids, dim=-2), self.axes_dim, self.theta)
        self._tables[key] = ([weakref.ref(x) for x in ids], table)
        return table
