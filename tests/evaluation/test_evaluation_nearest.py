"""Nearest neighbours against brute force; copies told from new draws."""

import numpy as np
import pytest
import torch
from evaluation_models import covered, normal

from fluxsmith.evaluation.evaluators.memorisation import copying, nearest
from fluxsmith.evaluation.statistics import Estimate


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("queries", "references"), [(50, 80), (700, 5)])
def test_brute_force(queries, references, dtype):
    queries, references = normal(queries, 30).to(dtype), normal(references, 30, seed=1).to(dtype)
    distances, indices = nearest(queries, references)
    gaps = (queries.double()[:, None] - references.double()).square().sum(2).sqrt()
    expected, whose = gaps.min(1)
    np.testing.assert_allclose(distances, expected, rtol=1e-12)
    assert indices.tolist() == whose.tolist()


def test_a_copy_is_at_distance_0():
    references = normal(60, 5) + 1000
    distances, indices = nearest(references[[29, 7]], references)
    assert distances.tolist() == [0, 0]
    assert indices.tolist() == [29, 7]


def test_copies_are_caught_and_new_draws_are_not():
    train, test = normal(1000, 6), normal(1000, 6, seed=1)
    fresh, far = normal(1000, 6, seed=2), 3 * normal(1000, 6, seed=3)
    copies = fresh.clone()
    copies[:100] = train[:100] + 1e-3
    new, copied, outside = (
        copying(nearest(x, train)[0], nearest(test, train)[0]) for x in (fresh, copies, far)
    )
    assert new["test_near_copies"] == pytest.approx(0.01)
    assert new["interval"][0] < new["test_near_copies"] < new["interval"][1]
    assert new["auc_interval"][0] < 0.5 < new["auc_interval"][1]

    assert copied["near_copies"] == pytest.approx(0.1 + 0.9 * new["near_copies"], abs=0.003)
    assert copied["interval"][0] > copied["test_near_copies"]
    assert copied["auc_interval"][1] < 0.5

    assert outside["auc_interval"][0] > 0.5
    assert outside["near_copies"] < new["test_near_copies"]


def test_the_auc_counts_pairs():
    samples, tests = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 2.0, 5.0])
    wins = sum((s > t) + (s == t) / 2 for s in samples for t in tests)
    assert copying(samples, tests)["auc"] == pytest.approx(float(wins) / 12)


def test_the_auc_interval_covers_the_truth():
    """P(N(0.5, 1) > N(0, 1)) = Phi(0.5/sqrt 2), in 90% to 99% of 300 experiments."""
    truth = float(torch.special.ndtr(torch.tensor(0.5 / 2**0.5)))
    found = [
        copying(normal(60, seed=s).numpy() + 0.5, normal(80, seed=s + 9999).numpy())
        for s in range(300)
    ]
    intervals = [Estimate(each["auc"], *each["auc_interval"]) for each in found]
    assert 270 <= covered(intervals, truth) <= 297
