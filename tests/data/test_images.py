"""Padding, stretching, grey and RGB, and the way from uint8 to [-1, 1] and back."""

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
    inside = padded[:, :, top : top + height, left : left + width]
    assert torch.equal(inside, images)
    assert padded.sum() == images.sum()  # all around is black


@pytest.mark.parametrize("shape", [(8, 4), (4, 8), (8, 8)])
def test_padding_shrinks_what_is_larger_whole_and_in_shape(shape):
    padded = to_size(torch.full((1, 1, *shape), 200, dtype=torch.uint8), 4, "pad")
    height, width = (side // 2 for side in shape)
    assert padded.shape == (1, 1, 4, 4)
    assert (padded == 200).sum() == height * width
    assert padded.sum() == 200 * height * width


def test_a_crop_keeps_the_middle_of_the_longer_side():
    images = random_images(2, 3, 4, 10)
    assert torch.equal(to_size(images, 4, "center-crop"), images[..., 3:7])
    assert torch.equal(to_size(images.mT.contiguous(), 4, "center-crop"), images.mT[..., 3:7, :])


@pytest.mark.parametrize("size", [5, 8, 16, 21])
def test_stretching_agrees_with_pillow(size):
    image = random_images(1, 1, 8, 8)
    stretched = to_size(image, size, "stretch")
    picture = Image.fromarray(image[0, 0].numpy())
    oracle = torch.tensor(list(picture.resize((size, size), Image.Resampling.BILINEAR).tobytes()))
    assert stretched.dtype == torch.uint8
    assert (stretched.flatten().int() - oracle).abs().max() <= 1


def test_stretching_keeps_an_even_surface_even():
    image = torch.full((1, 3, 7, 5), 201, dtype=torch.uint8)
    assert to_size(image, 12, "stretch").unique().tolist() == [201]


@pytest.mark.parametrize("resize", ["pad", "stretch", "center-crop", "random-crop"])
def test_images_of_the_right_size_stay_as_they_are(resize):
    images = random_images(2, 1, 6, 6)
    assert torch.equal(to_size(images, 6, resize), images)


def test_grey_becomes_rgb_by_repeating():
    grey = random_images(2, 1, 4, 4)
    rgb = convert_channels(grey, 3)
    assert rgb.shape == (2, 3, 4, 4)
    for channel in range(3):
        assert torch.equal(rgb[:, channel : channel + 1], grey)


def test_grey_repeated_and_weighed_is_grey_again_at_every_level():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(convert_channels(convert_channels(grey, 3), 1), grey)


def test_rgb_is_weighed_to_grey_as_pillow_does():
    rgb = random_images(1, 3, 64, 64)
    picture = Image.fromarray(rgb[0].permute(1, 2, 0).contiguous().numpy())
    oracle = torch.tensor(list(picture.convert("L").tobytes())).view(64, 64)
    assert (convert_channels(rgb, 1)[0, 0].int() - oracle).abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_that_fit_stay_as_they_are(channels):
    images = random_images(2, channels, 4, 4)
    assert torch.equal(convert_channels(images, channels), images)


def test_fit_sizes_and_converts():
    images = random_images(2, 1, 6, 6)
    fitted = fit(images, 8, 3, "pad")
    assert torch.equal(fitted, convert_channels(to_size(images, 8, "pad"), 3))
    assert fitted.shape == (2, 3, 8, 8)


def test_unit_and_back_is_the_identity_for_all_levels():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_unit(levels)), levels)


def test_unit_runs_from_minus_one_to_one():
    unit = to_unit(torch.tensor([0, 255], dtype=torch.uint8))
    assert unit.dtype == torch.float32
    assert unit.tolist() == [-1.0, 1.0]


def test_values_beyond_the_unit_range_are_clamped():
    assert to_uint8(torch.tensor([-7.0, -1.01, 1.01, 7.0])).tolist() == [0, 0, 255, 255]


def test_conversions_leave_their_input_alone():
    unit = torch.tensor([-0.5, 0.5])
    levels = to_uint8(unit)
    before = levels.clone()
    to_unit(levels)
    assert unit.tolist() == [-0.5, 0.5]
    assert torch.equal(levels, before)
