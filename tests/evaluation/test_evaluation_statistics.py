"""Intervals and tests against exact values and small simulations."""

import pytest
import scipy.stats
import torch
from evaluation_models import covered, normal

from fluxsmith.evaluation.frechet import Gaussian, frechet_draws
from fluxsmith.evaluation.statistics import (
    difference,
    holm,
    normal_interval,
    paired_difference,
    wilson_interval,
)


def test_normal_intervals_hold_95_percent_of_the_normal():
    value, low, high = normal_interval(1.0, 2.0)
    assert (value - low) / 2 == (high - value) / 2 == pytest.approx(1.959964, abs=1e-6)
    assert normal_interval(0.5, 1.0, 0, 1).interval == (0, 1)


def test_a_difference_at_the_end_of_its_interval_has_p_of_5_percent():
    draws = normal(1000)
    draws = (draws - draws.mean()) / draws.std()
    shifted = draws + 1.959964
    assert difference(shifted, torch.zeros(1000))[1] == pytest.approx(0.05, abs=1e-6)
    assert difference(shifted, torch.zeros(1000), margin=2)[1] == 1
    assert difference(draws, draws)[1] == 1
    assert difference(draws + 1, draws, margin=0.5)[1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (7, 10), (10, 10), (980, 1000)])
def test_wilson_s_ends_are_where_the_score_test_rejects(successes, trials):
    """|share - p| = 1.96 sqrt(p (1 - p)/n) at either end, unless that is 0 or 1."""
    for p in wilson_interval(successes, trials):
        if 0 < p < 1:
            error = (p * (1 - p) / trials) ** 0.5
            assert abs(successes / trials - p) == pytest.approx(1.959964 * error, rel=1e-5)
        else:
            assert p in (0, 1)
            assert p == successes / trials


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (3, 9), (10, 10), (400, 500)])
def test_mcnemar_against_the_binomial(gained, lost):
    a = torch.cat([torch.ones(gained), torch.zeros(lost), torch.ones(50), torch.zeros(30)])
    b = torch.cat([torch.zeros(gained), torch.ones(lost), torch.ones(50), torch.zeros(30)])
    found, p = paired_difference(a, b)
    pairs = gained + lost
    expected = min(1, 2 * scipy.stats.binom.cdf(min(gained, lost), pairs, 0.5))
    assert p == pytest.approx(expected)
    assert found.value == pytest.approx((gained - lost) / (pairs + 80))
    assert found.low < found.value < found.high


def test_the_interval_of_paired_outcomes_covers_the_truth():
    """A model right in 96% and one right in 90%, correlated: 92% to 99.5% of 400 experiments."""
    found = []
    for s in range(400):
        u = torch.rand(200, 2, generator=torch.Generator().manual_seed(s))
        a, b = u[:, 0] < 0.96, (u[:, 0] < 0.92) & (u[:, 1] < 0.9 / 0.92)
        found.append(paired_difference(a, b)[0])
    assert 368 <= covered(found, 0.06) <= 398


def test_draws_of_the_same_rows_make_differences_sharper():
    """Two models that differ by a constant shift: paired draws cancel what they share."""
    x, reference = normal(200, 4), Gaussian.of(normal(200, 4, seed=1))
    a, b = x + 0.2, x + 0.1
    draws = frechet_draws(a, reference, 0, 40)
    together, _ = difference(draws, frechet_draws(b, reference, 0, 40))
    apart, _ = difference(draws, frechet_draws(b, reference, 1, 40))
    assert together.high - together.low < 0.8 * (apart.high - apart.low)
    far, near = ((x.mean(0) - reference.mean).square().sum() for x in (a, b))
    assert together.low < float(far - near) < together.high


def test_holm():
    """Holm's own step-down rule, by hand, in the order given."""
    assert holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm([0.6, 0.5]) == [1, 1]
    assert holm([]) == []
