"""Weights in the order in which oneDNN multiplies by them, kept from one product to the next.

oneDNN multiplies by blocks of a weight matrix, which it copies into place in every product. A
network that draws uses the same weights dozens of times, so they are laid out once; training, which
changes them in every step, goes without.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fluxsmith.model.flux import Flux

# Bytes of copies up to which they are made: more memory might not be there.
ROOM = 1 << 30

# Passes through the network from which on the copying has paid for itself.
OFTEN = 8


class _Layouts:
    """The copies made so far of one network's weights."""

    def __init__(self, network: nn.Module) -> None:
        # Held as long as the copies are, so that no other tensor can come to have the same id.
        self._weights = {id(weight): weight for weight in network.parameters()}
        self._pieces: dict[tuple[int, int, tuple[int, ...]], list[Tensor]] = {}

    def __contains__(self, weight: Tensor) -> bool:
        return id(weight) in self._weights

    def of(self, weight: Tensor, sizes: Sequence[int], dim: int, rows: int) -> list[Tensor]:
        key = id(weight), dim, tuple(sizes)
        if key not in self._pieces:
            reorder = torch.ops.mkldnn._reorder_linear_weight
            self._pieces[key] = [reorder(piece, rows) for piece in _cut(weight, sizes, dim)]
        return self._pieces[key]


_LAYOUTS: ContextVar[_Layouts | None] = ContextVar("layouts", default=None)


@contextmanager
def keeping_layouts(network: "Flux", passes: int) -> Iterator[None]:
    """Inside, where the network's weights must not change, products keep them laid out; not for
    fewer than OFTEN passes, a network of more than ROOM bytes in float32, one that is streamed,
    which is where memory is short, or off the CPU."""
    weights = list(network.parameters())
    small = sum(weight.numel() * 4 for weight in weights) <= ROOM  # the copies are float32
    here = not network.streamed and all(weight.device.type == "cpu" for weight in weights)
    wanted = passes >= OFTEN and small and here
    token = _LAYOUTS.set(_Layouts(network) if wanted else None)
    try:
        yield
    finally:
        _LAYOUTS.reset(token)


def laid_out(weight: Tensor, sizes: Sequence[int], dim: int, x: Tensor) -> Sequence[Tensor]:
    """The pieces of a weight (n, k) for products with x (..., its share of k), laid out where
    layouts are kept and without gaps in any case; `sizes` add up to the weight's size in `dim`."""
    kept = _LAYOUTS.get()
    if kept is None or weight not in kept:
        return _cut(weight, sizes, dim)
    return kept.of(weight, sizes, dim, x.numel() // x.shape[-1])


def _cut(weight: Tensor, sizes: Sequence[int], dim: int) -> list[Tensor]:
    return [piece.contiguous() for piece in weight.split(list(sizes), dim)]
