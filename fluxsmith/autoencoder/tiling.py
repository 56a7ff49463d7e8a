"""Large pictures in overlapping tiles, so that memory follows the tile and not the picture."""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor


def tiled(code: Callable[[Tensor], Tensor], x: Tensor, tile: int, unit: int, to: int) -> Tensor:
    """`code` applied to overlapping tiles of x (b, c, h, w) and blended.

    Sizes count cells: a cell is `unit` pixels a side in x and `to` pixels a side in the result, so
    an encoder of factor 8 has unit 8 and to 1, its decoder unit 1 and to 8. Tiles of `tile` cells
    overlap by a quarter or more. In an overlap each tile's weight falls linearly towards its edge,
    so that no seam is visible. A tile of 0 is the whole picture.
    """
    rows, columns = x.shape[2] // unit, x.shape[3] // unit
    if not tile or (rows <= tile and columns <= tile):
        return code(x)
    height, width = min(tile, rows), min(tile, columns)
    window = torch.outer(_ramp(height * to), _ramp(width * to)).to(x.device)
    total = weight = torch.zeros(())
    for top, left in product(_starts(rows, tile), _starts(columns, tile)):
        part = code(x[..., top * unit : (top + height) * unit, left * unit : (left + width) * unit])
        if not total.ndim:  # the first tile tells the number of channels
            total = part.new_zeros(*part.shape[:2], rows * to, columns * to)
            weight = part.new_zeros(rows * to, columns * to)
        down = slice(top * to, (top + height) * to)
        across = slice(left * to, (left + width) * to)
        total[:, :, down, across] += part * window
        weight[down, across] += window
    return total.div_(weight)


def _starts(cells: int, tile: int) -> list[int]:
    """Where tiles begin that cover all cells, evenly spread, overlapping by a quarter or more."""
    if cells <= tile:
        return [0]
    step = max(1, tile - tile // 4)
    n = 1 + -((tile - cells) // step)  # tiles needed
    return [round(i * (cells - tile) / (n - 1)) for i in range(n)]


def _ramp(n: int) -> Tensor:
    """Rises from a tile's edge over a quarter of it, is 1 in the middle, and falls again: (n,)."""
    from_edge = torch.arange(n) + 0.5
    return torch.minimum(from_edge, from_edge.flip(0)).div(max(1, n / 4)).clamp(max=1)
