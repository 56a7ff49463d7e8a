"""Padding, stretching, cropping, grey and RGB, and the way from uint8 to [-1, 1] and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fluxsmith.data.images import convert_channels, fit, to_size, to_uint8, to_unit


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@given(height=st.integers(1, 9), width=st.integers(1, 9), more=st.integers(0, 9))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_padding_centres_and_cropping_undoes_it(height, width, more):
    size = max(height, width) + more
    images = random_images(2, 3, height, width)
    padded = to_size(images, size, "pad")
    assert padded.shape == (2, 3, size, size)
    top, left = (size - height) // 2, (size - width) // 2
    assert torch.equal(padded[:, :, top : top + height, left : left + width], images)
    assert padded.sum() == images.sum()  # all around is black


@pytest.mark.parametrize("shape", [(8, 4), (4, 8), (8, 8)])
def test_padding_shrinks_what_is_larger_whole_and_in_shape(shape):
    padded = to_size(torch.full((1, 1, *shape), 200, dtype=torch.uint8), 4, "pad")
    assert padded.shape == (1, 1, 4, 4)
    assert (padded == 200).sum() * 4 == shape[0] * shape[1]
    assert padded.sum() * 4 == 200 * shape[0] * shape[1]


def test_a_crop_keeps_the_middle_of_the_longer_side():
    images = random_images(2, 3, 4, 10)
    assert torch.equal(to_size(images, 4, "center-crop"), images[..., 3:7])
    assert torch.equal(to_size(images.mT.contiguous(), 4, "center-crop"), images.mT[..., 3:7, :])


@pytest.mark.parametrize("size", [5, 8, 16, 21])
def test_stretching_and_grey_agree_with_pillow(size):
    image = random_images(1, 3, 8, 8)
    picture = Image.fromarray(image[0].permute(1, 2, 0).contiguous().numpy())
    stretched = picture.resize((size, size), Image.Resampling.BILINEAR)
    for ours, theirs in (
        (to_size(image, size, "stretch"), stretched),
        (convert_channels(image, 1), picture.convert("L")),
    ):
        assert ours.dtype == torch.uint8
        oracle = torch.tensor(list(theirs.tobytes()))
        assert (ours[0].permute(1, 2, 0).flatten().int() - oracle).abs().max() <= 1


@pytest.mark.parametrize("resize", ["pad", "stretch", "center-crop", "random-crop"])
def test_what_fits_stays_as_it_is(resize):
    for channels in (1, 3):
        images = random_images(2, channels, 6, 6)
        assert torch.equal(fit(images, 6, channels, resize), images)


def test_grey_repeated_to_rgb_is_grey_again_at_every_level():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    rgb = convert_channels(grey, 3)
    assert torch.equal(rgb, grey.expand(1, 3, 16, 16))
    assert torch.equal(convert_channels(rgb, 1), grey)


def test_unit_and_back_is_the_identity_for_all_levels_and_clamps_the_rest():
    levels = torch.arange(256, dtype=torch.uint8)
    unit = to_unit(levels)
    assert unit.dtype == torch.float32
    assert (unit[0], unit[-1]) == (-1.0, 1.0)
    before = unit.clone()
    assert torch.equal(to_uint8(unit), levels)
    assert torch.equal(unit, before)  # neither changes what it is given
    assert torch.equal(levels, torch.arange(256, dtype=torch.uint8))
    assert to_uint8(torch.tensor([-7.0, -1.01, 1.01, 7.0])).tolist() == [0, 0, 255, 255]
