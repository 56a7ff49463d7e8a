"""Intervals and tests against exact values and small simulations."""

import math

import pytest
import scipy.stats
import torch
from evaluation_draws import normal

from fluxsmith.evaluation.frechet import GaussianStatistics, frechet_draws
from fluxsmith.evaluation.statistics import (
    bootstrap_mean_interval,
    difference_interval,
    holm,
    normal_quantile,
    paired_difference,
    wilson_interval,
)


def covered(intervals, truth):
    return sum(low <= truth <= high for low, high in intervals)


def test_normal_quantile():
    assert normal_quantile(0.95) == pytest.approx(1.959964, abs=1e-6)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (7, 10), (10, 10), (980, 1000)])
def test_wilson_against_scipy(successes, trials):
    theirs = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx(theirs, abs=1e-6)


def test_the_bootstrap_covers_the_mean():
    """Of skewed values: 90% to 99% of 200 experiments."""
    found = [bootstrap_mean_interval(normal(100, seed=s).exp(), s, 500) for s in range(200)]
    assert 180 <= covered(found, math.exp(0.5)) <= 198


def test_the_bootstrap_is_as_wide_as_the_normal_interval_and_repeatable():
    values = normal(2000) + 3
    low, high = bootstrap_mean_interval(values, 0)
    assert high - low == pytest.approx(2 * 1.96 * 2000**-0.5, rel=0.1)
    assert (low + high) / 2 == pytest.approx(float(values.mean()), abs=0.01)
    assert bootstrap_mean_interval(values, 0) == (low, high)
    assert bootstrap_mean_interval(values, 1) != (low, high)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (3, 9), (10, 10), (400, 500)])
def test_mcnemar_against_the_binomial(gained, lost):
    a = torch.cat([torch.ones(gained), torch.zeros(lost), torch.ones(50), torch.zeros(30)])
    b = torch.cat([torch.zeros(gained), torch.ones(lost), torch.ones(50), torch.zeros(30)])
    found = paired_difference(a, b, seed=0)
    pairs = gained + lost
    expected = scipy.stats.binomtest(gained, pairs).pvalue if pairs else 1
    assert found.p_value == pytest.approx(expected)
    assert found.mean == pytest.approx((gained - lost) / (pairs + 80))
    assert found.low < found.mean < found.high


def test_the_interval_of_paired_outcomes_covers_the_truth():
    """A model right in 96% and one right in 90%, correlated: 92% to 99.5% of 400 experiments."""
    found = []
    for s in range(400):
        u = torch.rand(200, 2, generator=torch.Generator().manual_seed(s))
        a, b = u[:, 0] < 0.96, (u[:, 0] < 0.92) & (u[:, 1] < 0.9 / 0.92)
        found.append(paired_difference(a, b, s)[1:3])
    assert 368 <= covered(found, 0.06) <= 398


def test_sign_flips_against_all_of_them():
    """12 differences have 4096 sign patterns; the random share is near the exact one."""
    a, b = normal(12) + 0.4, normal(12, seed=1)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 12)
    exact = float(((signs @ (a - b)).abs() >= abs((a - b).sum()) - 1e-9).double().mean())
    assert 0.02 < exact < 0.9
    found = paired_difference(a, b, seed=0)
    assert found.p_value == pytest.approx(exact, abs=4 * (exact / 9999) ** 0.5)
    swapped = paired_difference(b, a, seed=0)
    assert swapped.p_value == found.p_value
    assert swapped.mean == -found.mean


def test_p_values_are_honest_and_have_power():
    """Below 0.1 in about 10% of 200 equal pairs of models, and in nearly all of unequal ones."""
    common = [normal(30, seed=s) for s in range(200)]
    noise = [normal(2, 30, seed=s + 9999) for s in range(200)]

    def below(gain):
        pairs = zip(common, noise, strict=True)
        found = [paired_difference(c + n[0] + gain, c + n[1], 0, 199) for c, n in pairs]
        return sum(each.p_value <= 0.1 for each in found)

    assert 8 <= below(0) <= 34
    assert below(1.5) > 190


def test_equal_scores_and_mistakes():
    scores = normal(10)
    found = paired_difference(scores, scores, 0)
    assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference(scores, scores[:9], 0)


def test_draws_of_the_same_rows_make_differences_sharper():
    """Two models that differ by a constant shift: paired draws cancel what they share."""
    x, reference = normal(200, 4), GaussianStatistics.of(normal(200, 4, seed=1))
    a, b = x + 0.2, x + 0.1
    together = difference_interval(
        frechet_draws(a, reference, 0, 40), frechet_draws(b, reference, 0, 40)
    )
    apart = difference_interval(
        frechet_draws(a, reference, 0, 40), frechet_draws(b, reference, 1, 40)
    )
    assert together.high - together.low < 0.8 * (apart.high - apart.low)
    far, near = ((x.mean(0) - reference.mean).square().sum() for x in (a, b))
    assert together.low < float(far - near) < together.high


def test_holm():
    """Holm's own step-down rule, by hand, in the order given."""
    assert holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm([0.6, 0.5]) == [1, 1]
    assert holm([]) == []
