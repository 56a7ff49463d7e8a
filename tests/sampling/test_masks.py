"""Random masks: what shapes they have, how often each comes, and that they have an address."""

import torch

from fluxsmith.randomness import generator
from fluxsmith.sampling.masks import SHARES, SIDE, random_masks


def is_box(mask):
    """Whether the ones of a mask (h, w) fill the smallest box around them."""
    rows, columns = mask.amax(1).nonzero(), mask.amax(0).nonzero()
    if not len(rows):
        return False
    inside = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return bool(inside.all()) and inside.numel() < mask.numel()


def test_each_kind_comes_as_often_as_it_should():
    masks = random_masks(2000, 32, 32, generator("masks"))
    assert masks.shape == (2000, 1, 32, 32)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert masks.flatten(1).amax(1).all()  # something is always drawn anew
    boxes = sum(is_box(mask[0]) for mask in masks) / 2000
    outsides = sum(is_box(1 - mask[0]) for mask in masks) / 2000
    everything = float((masks.flatten(1).amin(1) == 1).float().mean())
    for found, share in zip((boxes, outsides, everything), (SHARES[0], SHARES[1], SHARES[3]),
                            strict=True):  # fmt: skip
        assert abs(found - share) < 0.03


def test_a_box_has_sides_within_its_bounds():
    masks = [mask[0] for mask in random_masks(500, 50, 100, generator("boxes"))]
    boxes = [mask for mask in masks if is_box(mask)]
    heights = torch.tensor([float(mask.amax(1).sum()) for mask in boxes]) / 50
    widths = torch.tensor([float(mask.amax(0).sum()) for mask in boxes]) / 100
    for sides, pixel in ((heights, 1 / 50), (widths, 1 / 100)):
        assert sides.min() > SIDE[0] - pixel
        assert sides.max() < SIDE[1] + pixel
        assert sides.std() > 0.1


def test_equal_addresses_give_equal_masks():
    one, two, other = (random_masks(8, 16, 16, generator("m", i)) for i in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(random_masks(3, 16, 16, generator("m", 1)), one[:3])
