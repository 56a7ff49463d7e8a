"""Nearest neighbours against brute force; copies told from new draws."""

import pytest
import torch
from evaluation_draws import normal

import fluxsmith.evaluation.nearest as nearest
from fluxsmith.evaluation.nearest import memorisation, nearest_neighbours


def brute_force(queries, references, k):
    gaps = queries.double()[:, None] - references.double()
    distances, indices = gaps.square().sum(2).sqrt().sort(dim=1, stable=True)
    return distances[:, :k], indices[:, :k]


@pytest.mark.parametrize(("k", "chunk", "block"), [(1, 512, 8192), (3, 7, 11), (40, 10, 16)])
def test_brute_force(monkeypatch, k, chunk, block):
    monkeypatch.setattr(nearest, "REFERENCES", block)
    queries, references = normal(50, 30), normal(80, 30, seed=1)
    distances, indices = nearest_neighbours(queries, references, k, chunk)
    expected, whose = brute_force(queries, references, k)
    torch.testing.assert_close(distances, expected, rtol=1e-12, atol=0)
    assert torch.equal(indices, whose)


@pytest.mark.parametrize("offset", [0, 1e3])
def test_gaps_that_float32_products_cannot_see(offset):
    """100 references around one point, 1e-6 of their norm apart: products in float32 order them
    at random, so that the nearest are found only by searching again."""
    middle = normal(1, 40) * 100
    references = torch.cat([middle + 1e-4 * normal(100, 40, seed=1), -middle]) + offset
    queries = middle + 1e-4 * normal(20, 40, seed=2) + offset
    distances, indices = nearest_neighbours(queries, references, 2)
    expected, whose = brute_force(queries, references, 2)
    assert torch.equal(indices, whose)
    torch.testing.assert_close(distances, expected, rtol=1e-9, atol=0)


def test_a_copy_is_at_distance_0_and_the_first_of_equals_is_named():
    references = normal(60, 5)
    references[20:50] = references[20]
    distances, indices = nearest_neighbours(references[[20, 7]], references)
    assert distances.tolist() == [[0], [0]]
    assert indices.tolist() == [[20], [7]]


def test_images_as_bytes_and_float32():
    """Large sets need not be copied to float64: the distances are exact all the same."""
    images = torch.randint(256, (70, 12), generator=torch.Generator().manual_seed(0)).byte()
    distances, indices = nearest_neighbours(images[:30], images, 3)
    expected, whose = brute_force(images[:30], images, 3)
    torch.testing.assert_close(distances, expected, rtol=1e-12, atol=0)
    assert torch.equal(indices, whose)
    x = normal(70, 12).float() + 100
    distances, _ = nearest_neighbours(x[:30], x[30:], 3)
    torch.testing.assert_close(distances, brute_force(x[:30], x[30:], 3)[0], rtol=1e-12, atol=0)


def test_k_beyond_the_references():
    with pytest.raises(ValueError, match="k=4 nearest of 3"):
        nearest_neighbours(normal(2, 2), normal(3, 2), 4)
    with pytest.raises(ValueError, match="finite"):
        nearest_neighbours(normal(2, 2), normal(3, 2) / 0)


def to_training(x, train):
    return nearest_neighbours(x, train)[0][:, 0]


def test_copies_are_caught_and_new_draws_are_not():
    train, test = normal(1000, 6), normal(1000, 6, seed=1)
    fresh, far = normal(1000, 6, seed=2), 3 * normal(1000, 6, seed=3)
    copies = fresh.clone()
    copies[:100] = train[:100] + 1e-3
    d = to_training(test, train)

    new = memorisation(to_training(fresh, train), d)
    assert new.expected == pytest.approx(0.01)
    assert new.near_copies.low < new.expected < new.near_copies.high
    assert new.auc.low < 0.5 < new.auc.high

    copied = memorisation(to_training(copies, train), d)
    assert copied.near_copies.value == pytest.approx(0.1 + 0.9 * new.near_copies.value, abs=0.003)
    assert copied.near_copies.low > copied.expected
    assert copied.auc.high < 0.5

    outside = memorisation(to_training(far, train), d)
    assert outside.auc.low > 0.5
    assert outside.near_copies.value < new.expected


def test_the_auc_counts_pairs():
    samples, tests = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 2.0, 5.0])
    wins = sum((s > t) + (s == t) / 2 for s in samples for t in tests)
    assert memorisation(samples, tests).auc.value == pytest.approx(float(wins) / 12)


def test_the_auc_interval_covers_the_truth():
    """P(N(0.5, 1) > N(0, 1)) = Phi(0.5/sqrt 2), in 90% to 99% of 300 experiments."""
    truth = float(torch.special.ndtr(torch.tensor(0.5 / 2**0.5)))
    found = [
        memorisation(normal(60, seed=s) + 0.5, normal(80, seed=s + 9999)).auc for s in range(300)
    ]
    assert 270 <= sum(each.low <= truth <= each.high for each in found) <= 297
