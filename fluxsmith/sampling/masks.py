"""Random masks for models that fill holes: boxes, all but a box, strokes of a brush, everything."""

from itertools import accumulate

import torch
from torch import Tensor

SHARES = (0.375, 0.125, 0.375, 0.125)  # of boxes, outsides of boxes, strokes, and everything
SIDE = 0.2, 0.8  # of a box, in sides of the picture, at least and at most
POINTS = 4  # that the strokes of a mask lead through
RADIUS = 0.04, 0.14  # of the brush, in sides of the picture


def random_masks(n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(n, 1, height, width) on the generator's device: 1 where a picture is drawn anew, 0 where it
    is kept."""
    device = generator.device
    kind, box, points, radius = torch.rand(
        n, 6 + 2 * POINTS, generator=generator, device=device
    ).split([1, 4, 2 * POINTS, 1], dim=1)
    rows, columns = ((torch.arange(side, device=device) + 0.5) / side for side in (height, width))
    pixels = torch.cartesian_prod(rows, columns)  # (h w, 2), in sides of the picture
    boxes = _boxes(pixels, box)
    strokes = _strokes(pixels, points.unflatten(1, (POINTS, 2)), _between(RADIUS, radius))
    kinds = torch.stack([boxes, ~boxes, strokes, torch.ones_like(boxes)])  # (4, n, h w)
    edges = torch.tensor([*accumulate(SHARES)][:-1], device=device)
    chosen = (kind >= edges).sum(1)
    masks = kinds[chosen, torch.arange(n, device=device)]
    return masks.float().view(n, 1, height, width)


def _boxes(pixels: Tensor, drawn: Tensor) -> Tensor:
    """(n, h w) bool, from where and how large each is, (n, 4) in [0, 1]; all of it is inside."""
    side = _between(SIDE, drawn[:, 2:])
    first = drawn[:, :2] * (1 - side)
    inside = (pixels >= first[:, None]) & (pixels < (first + side)[:, None])
    return inside.all(2)


def _strokes(pixels: Tensor, points: Tensor, radius: Tensor) -> Tensor:
    """(n, h w) bool: what lies within a radius (n, 1) of the lines through points (n, k, 2)."""
    start, along = points[:, :-1, None], points.diff(dim=1)[:, :, None]  # (n, k - 1, 1, 2)
    share = ((pixels - start) * along).sum(3, keepdim=True) / along.square().sum(3, keepdim=True)
    nearest = start + share.clamp(0, 1) * along  # (n, k - 1, h w, 2)
    return ((pixels - nearest).square().sum(3) < radius[..., None].square()).any(1)


def _between(ends: tuple[float, float], share: Tensor) -> Tensor:
    low, high = ends
    return low + (high - low) * share
