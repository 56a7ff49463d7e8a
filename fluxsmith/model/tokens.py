"""Between images and tokens: patches out and in, and the position ids that go with them."""

from functools import lru_cache

import torch
from torch import Tensor


def patchify(x: Tensor, patch: int) -> Tensor:
    """(b, c, H, W) -> (b, (H/p)(W/p), c p p), row by row; channel slowest within a token."""
    b, c, height, width = x.shape
    rows, columns = token_grid(height, width, patch)
    x = x.reshape(b, c, rows, patch, columns, patch)
    x = x.permute(0, 2, 4, 1, 3, 5)  # (b, rows, columns, c, p, p)
    return x.reshape(b, rows * columns, c * patch * patch)


def unpatchify(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """The inverse of `patchify`: (b, l, c p p) -> (b, c, height, width)."""
    rows, columns = token_grid(height, width, patch)
    b, length, features = tokens.shape
    if length != rows * columns or features % patch**2:
        raise ValueError(
            f"tokens of shape {tuple(tokens.shape)} don't make a {height}x{width} image in "
            f"patches of {patch}: that takes {rows * columns} tokens of c*{patch**2} features"
        )
    x = tokens.reshape(b, rows, columns, features // patch**2, patch, patch)
    x = x.permute(0, 3, 1, 4, 2, 5)  # (b, c, rows, p, columns, p)
    return x.reshape(b, features // patch**2, height, width)


def token_grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """The rows and columns of tokens that an image makes; a ValueError where it does not divide."""
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"a {height}x{width} image can't be cut into {patch}x{patch} patches")
    return height // patch, width // patch


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # first made while sampling, it must serve training too
def image_ids(
    rows: int, columns: int, device: torch.device, *references: tuple[int, int]
) -> Tensor:
    """(0, row, column) of each image token: (rows*columns, 3) float32. Those of reference pictures,
    given by their rows and columns, follow, with index 1, 2, ... in place of 0. Shared: do not
    write."""
    ids = [
        torch.cartesian_prod(*(torch.arange(float(n)) for n in (1, *grid)))
        + torch.tensor([i, 0, 0])
        for i, grid in enumerate(((rows, columns), *references))
    ]
    return torch.cat(ids).to(device)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def text_ids(length: int, device: torch.device) -> Tensor:
    """Zeros (length, 3): in FLUX.1 the text has no position of its own. Shared: do not write."""
    return torch.zeros(length, 3, device=device)
