"""Changes of low rank: cutting and joining are exact, and the one found is the nearest."""

import pytest
import torch
from helpers import assert_agree

from fluxsmith.adapters.low_rank import LowRank, cut, joined, nearest


def change(rows=12, width=4, rank=3, scale=1.0, start=0, seed=0):
    g = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, width, generator=g), torch.randn(rows, rank, generator=g)
    return LowRank("a", down, up, scale, start)


def whole(changes, rows=12):
    total = torch.zeros(rows, changes[0].down.shape[1])
    for one in changes:
        total[one.start : one.stop] += one.change()
    return total


def test_cutting_keeps_the_rows_and_joining_gives_the_whole_back():
    before = change(scale=0.5)
    pieces = [cut(before, i, i + 4) for i in range(0, 12, 4)]
    for i, piece in enumerate(pieces):
        assert torch.equal(piece.change(), before.change()[4 * i : 4 * i + 4])
    after = joined(pieces, 0, 12)
    assert after.rank == before.rank and after.scale == before.scale
    assert torch.equal(after.down, before.down) and torch.equal(after.up, before.up)


def test_joining_makes_a_block_diagonal_and_cutting_gives_each_its_own_rank_back():
    parts = [change(rows=4, rank=r, start=4 * i, seed=i) for i, r in enumerate((1, 2, 3))]
    one = joined(parts, 0, 12)
    assert one.rank == 6 and one.up.count_nonzero() == 4 * 6
    assert torch.equal(one.change(), whole(parts))
    for part in parts:
        back = cut(one, part.start, part.stop)
        assert torch.equal(back.up, part.up) and torch.equal(back.down, part.down)


def test_changes_of_several_scales_and_rows_add_up():
    parts = [change(scale=0.3), change(rows=5, scale=-2.0, start=3, seed=1)]
    one = joined(parts, 0, 12)
    assert one.scale == 1
    assert_agree(one.change(), whole(parts), within=1e-6)


def test_a_part_that_changes_nothing_is_left_out_but_a_new_change_is_whole():
    only_first = joined([change(rows=4)], 0, 12)
    assert cut(only_first, 4, 8) is None and cut(only_first, 0, 4).rank == 3
    new = LowRank("a", torch.randn(3, 4), torch.zeros(12, 3))
    assert cut(new, 4, 8).rank == 3


def test_the_norm_is_that_of_the_product():
    one = change(scale=-0.7)
    assert one.norm() == pytest.approx(float(one.change().norm()), rel=1e-6)


def test_the_nearest_change_is_the_truncated_singular_value_decomposition():
    difference = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    for rank in (1, 4, 20, 50):
        left = torch.linalg.svdvals(difference)[rank:].square().sum().sqrt()
        found = nearest("a", difference, rank)
        assert found.rank == min(rank, 20)
        error = (difference - found.change()).norm()
        assert float(error) == pytest.approx(float(left), rel=1e-3, abs=1e-4)
