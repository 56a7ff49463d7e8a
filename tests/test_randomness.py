"""Randomness by address: the same everywhere, and each address its own."""

import pytest
import torch

from fluxsmith.randomness import address_seed, generator, image_noise

ADDRESSES = [(), (1,), ("1",), (-1,), (1, 2), (2, 1), (12,), ("noise",), ("no", "ise"), ("ноise",)]


def test_a_seed_is_the_same_on_every_platform_and_in_every_version():
    """Written down once: runs of old must resume on what they would have drawn."""
    assert address_seed(0, "noise", 1) == 6_505_392_391_619_014_219


def test_different_addresses_have_different_seeds_of_63_bits():
    seeds = {address_seed(*address) for address in ADDRESSES}
    assert len(seeds) == len(ADDRESSES)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_use_all_of_their_bits():
    """Each of the 63 is set in about half of 1000 seeds: 500 +- 5 standard deviations."""
    seeds = [address_seed("bits", i) for i in range(1000)]
    for bit in range(63):
        assert 420 < sum(seed >> bit & 1 for seed in seeds) < 580


def test_equal_addresses_give_equal_streams_whatever_else_is_drawn():
    first = torch.randn(5, generator=generator(7, "a"))
    torch.manual_seed(123)
    torch.randn(3, generator=generator(7, "b"))
    assert torch.equal(torch.randn(5, generator=generator(7, "a")), first)
    assert not torch.equal(torch.randn(5, generator=generator(7, "b")), first)


def test_the_global_stream_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    image_noise((1, 4, 4), seed=0, indices=range(3))
    assert torch.equal(torch.rand(3), expected)


def test_an_images_noise_does_not_depend_on_the_range_it_is_drawn_in():
    together = image_noise((3, 4, 5), seed=7, indices=range(6))
    assert together.shape == (6, 3, 4, 5)
    assert together.dtype == torch.float32
    assert torch.equal(image_noise((3, 4, 5), 7, range(2, 5)), together[2:5])
    assert torch.equal(image_noise((3, 4, 5), 7, range(5, 6)), together[5:])
    assert torch.equal(image_noise((3, 4, 5), 7, range(5, -1, -2)), together[[5, 3, 1]])


def test_images_and_seeds_have_noise_of_their_own():
    noise = torch.cat([image_noise((1, 4, 4), seed, range(4)) for seed in (0, 1)])
    assert len({tuple(image.flatten().tolist()) for image in noise}) == 8


def test_noise_is_standard_normal():
    noise = image_noise((1, 32, 32), seed=3, indices=range(40)).flatten()
    n = len(noise)
    assert abs(noise.mean()) < 5 / n**0.5
    assert abs(noise.square().mean() - 1) < 5 * (2 / n) ** 0.5
    inside = (noise.abs() < 1).float().mean()
    assert inside == pytest.approx(0.6827, abs=0.02)
