"""Rotary positions: rotations by the right angles, and a cache that never gives a stale table."""

import pytest
import torch
from flux_at_random import CPU, flux_at_random, inputs, tiny_params
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


def test_rotation_keeps_norms():
    x = random(2, 3, 15, 16)
    rotated = rotate(x, table_of(100 * random(15, 3)))
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(rotated, x, atol=0.1)


def test_the_origin_is_not_rotated():
    x = random(2, 3, 15, 16)
    assert torch.equal(rotate(x, table_of(torch.zeros(15, 3))), x)


def test_products_of_queries_and_keys_see_relative_positions_only():
    ids = image_ids(3, 5, CPU)
    q, k = random(1, 2, 15, 16), random(1, 2, 15, 16, seed=1)

    def products(ids):
        table = table_of(ids)
        return rotate(q, table) @ rotate(k, table).mT

    here = products(ids)
    torch.testing.assert_close(products(ids + torch.tensor([3, 40, -7])), here, rtol=0, atol=1e-4)
    assert not torch.allclose(products(2 * ids), here, atol=0.1)


def test_rotation_keeps_the_dtype():
    x = random(1, 2, 15, 16).bfloat16()
    assert rotate(x, table_of(image_ids(3, 5, CPU))).dtype == torch.bfloat16


def test_tables_are_float32_and_accurate_far_out():
    """At position 4000 an angle computed in float32 would be off by 1e-4."""
    cos, sin = table_of(torch.full((1, 3), 4000.0))
    assert cos.dtype == sin.dtype == torch.float32
    frequency = THETA ** (-torch.arange(0, 6, 2).double() / 6)
    torch.testing.assert_close(cos[0, 2:5], (4000 * frequency).cos().float(), rtol=0, atol=1e-7)


class WithoutFloat64(TorchDispatchMode):
    """Makes of the meta device one that, like Apple's, has no float64, and reads back as zeros."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        on_meta = any(x.is_meta for x in tree_leaves(args) if isinstance(x, torch.Tensor))
        if on_meta and kwargs.get("device") == CPU:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        result = function(*args, **kwargs)
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.is_meta and x.dtype == torch.float64:
                raise TypeError(f"{function} makes float64 on a device that has none")
        return result


def test_a_table_needs_no_float64_where_its_ids_are():
    ids = torch.zeros(15, 3, device="meta")
    with WithoutFloat64():
        cos, sin = table_of(ids)
    assert cos.is_meta
    assert sin.is_meta
    assert cos.shape == sin.shape == (15, 8)


# The cache


@pytest.fixture
def cache():
    return RotaryCache(AXES, THETA)


def test_the_same_ids_give_the_identical_table(cache):
    txt, img = torch.zeros(2, 3), image_ids(3, 5, CPU)
    first = cache(txt, img)
    again = cache(txt, img)
    assert again is first
    assert same(first, table_of(torch.cat((txt, img))))


def test_equal_ids_in_other_tensors_give_an_equal_table(cache):
    ids = random(4, 3)
    assert same(cache(ids), cache(ids.clone()))


def test_the_order_of_ids_counts(cache):
    a, b = random(2, 3), random(2, 3, seed=1)
    cache(a, b)
    assert same(cache(b, a), table_of(torch.cat((b, a))))


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


def test_ids_made_in_inference_mode_give_the_right_table(cache):
    with torch.inference_mode():
        ids = random(4, 3)
        assert same(cache(ids), table_of(ids))
        ids += 1
        assert same(cache(ids), table_of(ids))


@pytest.mark.parametrize("made_in", ["training", "inference"])
def test_a_table_first_made_in_inference_mode_serves_training(made_in):
    flux = flux_at_random(tiny_params())
    with torch.inference_mode(made_in == "inference"):
        ids = {"img_ids": random(15, 3), "txt_ids": torch.zeros(4, 3)}
    x = {**inputs(flux.params), **ids}
    with torch.inference_mode():
        sampled = flux(**x)
    trained = flux(**x)
    trained.square().mean().backward()
    torch.testing.assert_close(trained.detach(), sampled)
    assert flux.double_blocks[0].img_attn.qkv.weight.grad.any()
