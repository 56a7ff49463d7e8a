"""Rotary positions: rotations by the right angles, and a cache that never gives a stale table."""

import pytest
import torch
from flux_at_random import CPU, flux_at_random, inputs, tiny_params

from fluxsmith.model.rope import RotaryCache, rotary_table, rotate
from fluxsmith.model.tokens import image_ids

AXES, THETA = (4, 6, 6), 10_000.0


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(table, other):
    return all(torch.equal(a, b) for a, b in zip(table, other, strict=True))


def table_of(ids):
    return rotary_table(ids, AXES, THETA)


@pytest.mark.parametrize("ids", [image_ids(3, 5, CPU), 40 * random(2, 15, 3)], ids=["2d", "3d"])
def test_rotation_is_a_product_of_complex_numbers(ids):
    """Pair j of axis a, at position p, turns by p theta^(-2j/w): RoFormer, eq. 34."""
    x = random(2, 3, 15, 16)
    rotated = rotate(x, table_of(ids))
    assert rotate(x.bfloat16(), table_of(ids)).dtype == torch.bfloat16
    for b in range(2):
        for token in range(15):
            position = (ids[b] if ids.ndim == 3 else ids)[token].tolist()
            angles = [
                p * THETA ** (-2 * j / width)
                for p, width in zip(position, AXES, strict=True)
                for j in range(width // 2)
            ]
            turn = torch.polar(torch.ones(8).double(), torch.tensor(angles).double())
            pairs = torch.view_as_complex(x[b, :, token].double().unflatten(-1, (8, 2)))
            by_hand = torch.view_as_real(pairs * turn).flatten(-2).float()
            torch.testing.assert_close(rotated[b, :, token], by_hand, rtol=0, atol=1e-5)


def test_tables_are_float32_and_accurate_far_out():
    """At position 4000 an angle computed in float32 would be off by 1e-4."""
    cos, sin = table_of(torch.full((1, 3), 4000.0))
    assert cos.dtype == sin.dtype == torch.float32
    frequency = THETA ** (-torch.arange(0, 6, 2).double() / 6)
    torch.testing.assert_close(cos[0, 2:5], (4000 * frequency).cos().float(), rtol=0, atol=1e-7)


# The cache


@pytest.fixture
def cache():
    return RotaryCache(AXES, THETA)


def test_a_table_is_that_of_the_ids_in_their_order_and_kept(cache):
    txt, img = torch.zeros(2, 3), image_ids(3, 5, CPU)
    first = cache(txt, img)
    assert cache(txt, img) is first
    assert same(first, table_of(torch.cat((txt, img))))
    assert same(cache(img, txt), table_of(torch.cat((img, txt))))
    assert same(cache(txt, img.clone()), first)


def test_ids_written_in_place_give_a_new_table(cache):
    ids = random(4, 3)
    cache(ids)
    ids += 1
    assert same(cache(ids), table_of(ids))
    ids[2] = 7
    assert same(cache(ids), table_of(ids))
    ids[:, 1].zero_()
    assert same(cache(ids), table_of(ids))


def test_ids_that_die_leave_no_stale_table(cache):
    """Python gives a dead tensor's id() to the next one: far more tensors than places in memory."""
    for i in range(300):
        ids = torch.full((2, 3), float(i))
        assert same(cache(ids), table_of(ids))
        del ids


def test_the_cache_does_not_grow_for_ever():
    cache = RotaryCache(AXES, THETA, size=4)
    ids = [random(2, 3, seed=i) for i in range(6)]
    tables = [cache(x) for x in ids]
    assert cache(ids[-1]) is tables[-1]
    assert cache(ids[0]) is not tables[0]
    assert same(cache(ids[0]), tables[0])


def test_a_table_first_made_in_inference_mode_serves_training():
    flux = flux_at_random(tiny_params())
    x = {**inputs(flux.params), "img_ids": random(15, 3)}
    with torch.inference_mode():
        sampled = flux(**x)
    trained = flux(**x)
    trained.square().mean().backward()
    torch.testing.assert_close(trained.detach(), sampled)
