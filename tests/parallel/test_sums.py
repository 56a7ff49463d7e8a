"""Sums in a fixed tree, and shares of tensors."""

import torch

from fluxsmith.parallel.sharding import cut
from fluxsmith.parallel.sums import Tree, tree_sum


def numbers(n):
    """Rows whose sum depends on the order."""
    draw = torch.Generator().manual_seed(n)
    return torch.randn(n, 1000, generator=draw) * 10 ** torch.randint(-4, 5, (n, 1), generator=draw)


def by_halves(rows):
    half = len(rows) // 2
    return rows[0] if half == 0 else by_halves(rows[:half]) + by_halves(rows[half:])


def test_rows_that_come_one_by_one_are_added_in_the_same_tree_as_all_at_once():
    for n in (1, 2, 4, 16):
        rows, tree = numbers(n), Tree()
        for row in rows:
            tree.add([row.clone(), None, row.clone()])
        first, none, last = tree.total()
        assert none is None
        expected = by_halves(rows)
        assert torch.equal(first, expected)
        assert torch.equal(last, expected)
        assert torch.equal(tree_sum(rows), expected)
    assert not torch.equal(tree_sum(rows), rows.sum(0))  # else the order would not matter


def test_the_tree_of_all_pieces_is_that_of_the_sums_of_ranks():
    rows = numbers(8)
    for ranks in (2, 4, 8):
        sums = torch.stack([tree_sum(part) for part in rows.chunk(ranks)])
        assert torch.equal(tree_sum(sums), tree_sum(rows))


def test_shares_together_are_the_tensor():
    for rows in (1, 3, 6, 8):
        x = torch.randn(rows, 2)
        for shares in (1, 2, 4):
            assert torch.equal(torch.cat([cut(x, shares, rank) for rank in range(shares)]), x)
