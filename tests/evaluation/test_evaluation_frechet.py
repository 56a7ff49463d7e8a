"""The Fréchet distance against its closed form, numpy, scipy and torchmetrics."""

import numpy as np
import pytest
import scipy.linalg
import torch
from evaluation_models import Pixels, covered, normal
from torchmetrics.image.fid import FrechetInceptionDistance

from fluxsmith.evaluation.frechet import (
    Gaussian,
    frechet_distance,
    frechet_draws,
    frechet_interval,
)
from fluxsmith.randomness import generator


def rotation(d, seed=0):
    return torch.linalg.qr(normal(d, d, seed=seed))[0]


def test_statistics_are_those_of_numpy_and_a_large_mean_costs_no_digits():
    """In float64 at 1e8 a sum of squares would keep no digit of a variance of 1."""
    x = normal(1000, 2) * torch.tensor([1.0, 3.0]) + 1e8
    found = Gaussian.of(x)
    np.testing.assert_allclose(found.mean, x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-6)
    assert Gaussian.of(x[:, :1]).covariance.shape == (1, 1)


def test_commuting_covariances_in_closed_form():
    """|m|^2 + sum (sqrt(a) - sqrt(b))^2 over the common axes, in any rotation; some are flat."""
    mean = torch.tensor([1.0, 0.0, -2.0, 0.5]).double()
    a = torch.tensor([4.0, 1.0, 0.0, 0.0]).double()
    b = torch.tensor([1.0, 9.0, 0.25, 0.0]).double()
    expected = float(mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    for turn in (torch.eye(4).double(), rotation(4)):
        first = Gaussian(turn @ mean, turn @ a.diag() @ turn.T)
        second = Gaussian(torch.zeros(4).double(), turn @ b.diag() @ turn.T)
        assert frechet_distance(first, second) == pytest.approx(expected, abs=1e-6)
        assert frechet_distance(second, first) == pytest.approx(expected, abs=1e-6)


def test_covariances_that_do_not_commute_against_scipy():
    a, b = normal(60, 6), normal(60, 6, seed=1) @ normal(6, 6, seed=2)
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    gap = (a.mean(0) - b.mean(0)).numpy()
    expected = gap @ gap + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    found = frechet_distance(Gaussian.of(a), Gaussian.of(b))
    assert found == pytest.approx(expected, rel=1e-9)


def test_fewer_rows_than_features():
    """Rank 4 in 20 dimensions: finite, real, 0 from itself, and right against scipy."""
    a, b = normal(5, 20), normal(5, 20, seed=1) + 1
    first, second = Gaussian.of(a), Gaussian.of(b)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-5)
    values = np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).real.clip(0)
    trace = first.covariance.trace() + second.covariance.trace() - 2 * np.sqrt(values).sum()
    expected = float((first.mean - second.mean).square().sum() + trace)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-5)


def test_agrees_with_torchmetrics():
    a, b = normal(200, 3, 4, 4), normal(150, 3, 4, 4, seed=1) * 1.3 + 0.2
    theirs = FrechetInceptionDistance(Pixels(), input_img_size=(3, 4, 4), normalize=True)
    theirs.set_dtype(torch.float64)
    theirs.update(a.float(), real=True)
    theirs.update(b.float(), real=False)
    ours = frechet_distance(Gaussian.of(a.flatten(1)), Gaussian.of(b.flatten(1)))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-4)


def test_draws_are_resampled_rows():
    """The weighted sums give what drawing the rows themselves gives."""
    x, reference = normal(30, 4) + 5, Gaussian.of(normal(90, 4, seed=1))
    draws = frechet_draws(x, reference, seed=3, resamples=4)
    for r in range(4):
        rows = torch.randint(30, (30,), generator=generator(3, "frechet", r))
        expected = frechet_distance(Gaussian.of(x[rows]), reference)
        assert float(draws[r]) == pytest.approx(expected, rel=1e-9)
    assert torch.equal(draws[:2], frechet_draws(x, reference, seed=3, resamples=2))


def test_the_interval_covers_the_distance_of_the_distribution():
    """Of 100 experiments in 8 dimensions 95 should; below 89 or 100 of 100 are 1% chances.

    The distance from the samples themselves is above the truth in almost all, which is why the
    interval doesn't stand around it.
    """
    shift, d = 0.25, 8
    reference = Gaussian(torch.zeros(d).double(), torch.eye(d).double())
    truth = d * (shift**2 + (1.2 - 1) ** 2)
    found = [
        frechet_interval(1.2 * normal(200, d, seed=s) + shift, reference, s, resamples=40)
        for s in range(100)
    ]
    assert 88 <= covered([unbiased for _, unbiased in found], truth) <= 99
    assert sum(distance > truth for distance, _ in found) > 65
    assert sum(unbiased.value for _, unbiased in found) / 100 == pytest.approx(truth, rel=0.02)
