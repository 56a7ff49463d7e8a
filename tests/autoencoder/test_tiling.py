"""Tiles and pieces of a batch: the same pictures for less memory, without seams."""

import pytest
import torch
from tiny_autoencoder import tiny_autoencoder

from fluxsmith.autoencoder.tiling import tiled


def smooth_image(height, width):
    """A picture with waves of a few dozen pixels, as photographs have, and no edge anywhere."""
    y, x = torch.meshgrid(torch.arange(height) / 23, torch.arange(width) / 31, indexing="ij")
    return torch.stack((y.sin() * x.cos(), (x + y).sin(), (x - y).cos()))[None]


@pytest.mark.parametrize("size", [(40, 40), (41, 97), (16, 64), (64, 16), (17, 16)])
def test_tiles_of_what_looks_at_one_cell_are_exact(size):
    """Blending weights sum to one everywhere, and every cell is covered."""
    x = torch.randn(2, 3, *size)
    result = tiled(lambda part: 2 * part + 1, x, tile=16, unit=1, to=1)
    torch.testing.assert_close(result, 2 * x + 1)


def test_cells_larger_and_smaller_than_a_pixel():
    x = torch.randn(1, 2, 24, 40)
    grown = tiled(lambda part: part.repeat_interleave(2, 2).repeat_interleave(2, 3), x, 8, 1, 2)
    torch.testing.assert_close(grown, x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    shrunk = tiled(lambda part: part[..., ::2, ::2], x, 5, 2, 1)
    torch.testing.assert_close(shrunk, x[..., ::2, ::2])


def test_no_tile_is_larger_than_asked_and_a_small_picture_is_not_cut():
    seen = []
    tiled(lambda part: seen.append(part.shape[2:]) or part, torch.zeros(1, 1, 100, 50), 16, 1, 1)
    assert seen == [(16, 16)] * 8 * 4  # 100 cells in tiles of 16, 12 or fewer apart, make 8
    tiled(lambda part: seen.append(part.shape[2:]) or part, torch.zeros(1, 1, 16, 12), 16, 1, 1)
    assert seen[32:] == [(16, 12)]


def test_tiles_leave_no_seam():
    """What tiles change changes as gradually where one ends as anywhere else. Side by side without
    blending it jumps there, which is what makes this a test."""
    autoencoder = tiny_autoencoder()
    latents = autoencoder.encode(smooth_image(256, 256))  # 64 x 64 cells
    whole = autoencoder.decode(latents)
    autoencoder.tile = 16
    blended = autoencoder.decode(latents)
    rows = [row.split(16, dim=3) for row in latents.split(16, dim=2)]
    cut = torch.cat([torch.cat([*map(autoencoder.decode, row)], dim=3) for row in rows], dim=2)
    starts = (0, 12, 24, 36, 48)
    ends = {4 * cell for start in starts for cell in (start, start + 16)} - {0, 256}
    steps = jump(blended - whole, ends), jump(cut - whole, {64, 128, 192})
    print(f"blended {steps[0]:.3f}, cut {steps[1]:.3f}")
    assert steps[0] < 1.05
    assert steps[1] > 1.3


def jump(change, columns):
    """The step of `change` at the start of these columns, in multiples of that at all others."""
    step = change.diff(dim=3).abs().mean((0, 1, 2))  # step[i]: between columns i and i + 1
    at = torch.zeros(len(step), dtype=torch.bool)
    at[[column - 1 for column in columns]] = True
    return (step[at].mean() / step[~at].mean()).item()


def test_pieces_of_a_batch_are_the_batch():
    whole, sliced = tiny_autoencoder(), tiny_autoencoder(max_batch=2)
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    latents = whole.encode(images)
    torch.testing.assert_close(sliced.encode(images), latents, atol=1e-5, rtol=0)
    torch.testing.assert_close(sliced.decode(latents), whole.decode(latents), atol=1e-5, rtol=0)
