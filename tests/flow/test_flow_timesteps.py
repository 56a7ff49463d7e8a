"""Training densities against their closed forms, and what stratifying does and does not change."""

import math

import numpy as np
import pytest
import torch

from fluxsmith.flow.timesteps import (
    DENSITIES,
    LogitNormal,
    Mode,
    Shifted,
    Uniform,
    sample,
    stratified_grid,
)


def logit_normal_cdf(mean, scale):
    """Esser et al. 2024, eq. 19, integrated: the normal CDF of the logit."""
    return lambda t: 0.5 * (1 + torch.erf((torch.logit(t) - mean) / (scale * math.sqrt(2))))


def mode_cdf(scale):
    """Esser et al. 2024, eq. 20: t = f(u) falls with u, so P(f(U) <= t) = 1 - f^-1(t)."""
    u = np.linspace(0, 1, 200_001)
    f = 1 - u - scale * (np.cos(math.pi / 2 * u) ** 2 - 1 + u)
    return lambda t: torch.from_numpy(np.interp(t.numpy(), f[::-1], 1 - u[::-1]))


def shifted_cdf(s):
    """Esser et al. 2024, eq. 23, solved for u."""
    return lambda t: t / (s - (s - 1) * t)


CASES = [
    pytest.param(Uniform(), lambda t: t, id="uniform"),
    pytest.param(LogitNormal(), logit_normal_cdf(0, 1), id="logit-normal"),
    pytest.param(LogitNormal(-0.7, 0.5), logit_normal_cdf(-0.7, 0.5), id="logit-normal-low-narrow"),
    pytest.param(LogitNormal(0.4, 1.8), logit_normal_cdf(0.4, 1.8), id="logit-normal-high-wide"),
    pytest.param(Mode(), mode_cdf(1.29), id="mode"),
    pytest.param(Mode(-1), mode_cdf(-1), id="mode-lowest"),
    pytest.param(Mode(1.75), mode_cdf(1.75), id="mode-highest"),
    pytest.param(Shifted(), shifted_cdf(3), id="shifted"),
    pytest.param(Shifted(0.4), shifted_cdf(0.4), id="shifted-to-data"),
]
every_density = pytest.mark.parametrize(("density", "cdf"), CASES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def kolmogorov_distance(t, cdf):
    """The largest gap between the empirical and the true distribution function."""
    expected = cdf(t.double().sort().values)
    ranks = torch.arange(len(t) + 1) / len(t)
    return max((ranks[1:] - expected).max().item(), (expected - ranks[:-1]).max().item())


@every_density
def test_quantile_is_the_inverse_of_the_closed_form_cdf(density, cdf):
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    torch.testing.assert_close(cdf(density.quantile(u)), u, rtol=0, atol=1e-6)


@every_density
def test_quantile_rises_from_0_to_1(density, cdf):
    t = density.quantile(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert t[0] == 0
    assert t[-1] == 1
    assert (t.diff() > 0).all()


@every_density
@pytest.mark.parametrize("stratified", [False, True], ids=["independent", "stratified"])
def test_samples_follow_the_density(density, cdf, stratified):
    n = 20_000
    t = sample(density, n, generator(), stratified)
    assert t.shape == (n,)
    assert t.dtype == torch.float32
    assert t.min() >= 0
    assert t.max() <= 1
    assert kolmogorov_distance(t, cdf) < 1.63 / math.sqrt(n)  # Kolmogorov-Smirnov at 1%


@pytest.mark.parametrize("scale", [-1, -0.3, 0, 0.5, 1.29, 1.75])
def test_mode_density_is_that_of_sd3(scale):
    """dt/du = -f'(1 - u), where f' = -1 + s (pi/2 sin(pi u) - 1) from Esser et al. 2024, eq. 20."""
    u = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(Mode(scale).quantile(u).sum(), u)
    sd3 = 1 - scale * (math.pi / 2 * torch.sin(math.pi * (1 - u)) - 1)
    torch.testing.assert_close(slope, sd3, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        (lambda x: LogitNormal(scale=x), 0.0),
        (lambda x: LogitNormal(scale=x), -1.0),
        (Mode, -1.01),
        (Mode, 1.76),
        (Shifted, 0.0),
        (Shifted, -3.0),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_number(make, bad):
    with pytest.raises(ValueError, match=str(bad)):
        make(bad)


def test_every_density_has_a_name():
    assert {type(case.values[0]) for case in CASES} == set(DENSITIES.values())


@every_density
def test_stratified_takes_one_sample_from_each_slice(density, cdf):
    n = 64
    for seed in range(20):
        t = sample(density, n, generator(seed), stratified=True).double()
        assert torch.equal((cdf(t) * n).floor().long(), torch.arange(n))


@every_density
def test_every_place_in_a_stratified_slice_is_as_likely(density, cdf):
    """So each image's own density is untouched: (i + U) / n with i a slice drawn at random."""
    n = 8
    u = torch.cat([cdf(sample(density, n, generator(s), True).double()) for s in range(500)])
    assert kolmogorov_distance((u * n).frac(), lambda x: x) < 1.63 / math.sqrt(len(u))


def test_stratified_batches_have_means_of_smaller_variance():
    """Of a smooth function, by about 1/n^2: Kingma et al. 2021, appendix I.1."""
    n, batches = 16, 200

    def variance(stratified):
        draws = [sample(Uniform(), n, generator(seed), stratified) for seed in range(batches)]
        return torch.stack(draws).square().mean(1).var().item()

    assert variance(True) < variance(False) / 50


@pytest.mark.parametrize("stratified", [False, True])
def test_equal_generators_give_equal_times(stratified):
    first, again, other = (sample(LogitNormal(), 9, generator(s), stratified) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_grid_of_mlperf_is_the_eighths_from_0():
    grid = stratified_grid(8, offset=0)
    assert stratified_grid(4).tolist() == [0.125, 0.375, 0.625, 0.875]  # the middles by default
    assert grid.tolist() == [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]
    assert grid.dtype == torch.float32
