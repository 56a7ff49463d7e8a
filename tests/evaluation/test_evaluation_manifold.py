"""Precision, recall, density and coverage on sets whose figures follow from their making."""

import pytest
import torch
from evaluation_models import normal

from fluxsmith.evaluation.evaluators.feature_distance import manifold


def figures(found):
    return tuple(found[name] for name in ("precision", "recall", "density", "coverage"))


def by_definition(fake, real, k):
    across = torch.cdist(real, fake)
    real_radius = torch.cdist(real, real).sort(1).values[:, k]
    fake_radius = torch.cdist(fake, fake).sort(1).values[:, k]
    inside = across <= real_radius[:, None]  # (m, n)
    return (
        float(inside.any(0).double().mean()),
        float((across <= fake_radius).any(1).double().mean()),
        float(inside.double().sum(0).mean() / k),
        float(inside.any(1).double().mean()),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_definition(k):
    fake, real = normal(700, 4) * 0.8 + 0.5, normal(600, 4, seed=1)
    expected = by_definition(fake, real, k)
    assert all(0.05 < figure < 3 for figure in expected)  # nothing here is decided beforehand
    assert figures(manifold(fake, real, k)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("offset", [0, 1e4])
def test_equal_sets(offset):
    """Each point lies in its own ball and in k others' on average, the ties at the k-th included,
    far from the origin too."""
    x = normal(300, 6) + offset
    assert figures(manifold(x, x, k=5)) == pytest.approx((1, 1, 6 / 5, 1))


def test_sets_far_apart():
    assert figures(manifold(normal(50, 3), normal(50, 3, seed=1) + 100)) == (0, 0, 0, 0)


def test_new_draws_of_the_same_distribution():
    """E[density] = 1 and E[coverage] = 1 - 2^-k nearly, for n = m (Naeem et al. 2020)."""
    found = manifold(normal(2000, 8), normal(2000, 8, seed=1))
    assert found["density"] == pytest.approx(1, abs=0.05)
    assert found["coverage"] == pytest.approx(1 - 2**-5, abs=0.02)


def test_a_dropped_mode_costs_recall_and_coverage_only():
    real = torch.cat([normal(200, 3), normal(200, 3, seed=1) + 50])
    both = torch.cat([normal(200, 3, seed=2), normal(200, 3, seed=3) + 50])
    one = normal(400, 3, seed=4)
    whole, dropped = manifold(both, real), manifold(one, real)
    assert whole["recall"] > 0.9
    assert whole["coverage"] > 0.9
    assert dropped["recall"] <= 0.5
    assert dropped["coverage"] <= 0.5
    assert dropped["precision"] > 0.9


def test_the_limit_is_on_the_rows_used_and_fixed():
    x, y = normal(90, 3), normal(70, 3, seed=1)
    found = manifold(x, y, limit=40)
    assert found == manifold(x, y, limit=40) != manifold(x, y)
    assert found["recall"] * 40 == pytest.approx(round(found["recall"] * 40))
    assert manifold(x, y, limit=90) == manifold(x, y)
