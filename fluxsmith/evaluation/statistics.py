"""Intervals for what was measured, and tests of whether two measurements differ."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from fluxsmith.randomness import generator

BLOCK = 100  # resamples in memory at a time


class Estimate(NamedTuple):
    value: float
    low: float  # the ends of its confidence interval
    high: float


class PairedDifference(NamedTuple):
    mean: float  # of a - b
    low: float
    high: float
    p_value: float  # two-sided, of the hypothesis that a and b could be swapped in every pair


def normal_quantile(level: float) -> float:
    """Half the width, in standard deviations, of the normal's central `level`: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95% score interval of a proportion (Wilson 1927), sound near 0 and 1 and for small n."""
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def bootstrap_mean_interval(
    values: Tensor, seed: int, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """The percentile interval of the mean of values (n,) (Efron & Tibshirani 1993, chapter 13).

    A little short for n below about 50.
    """
    values = values.detach().cpu().double()
    n, means = len(values), []
    for start in range(0, resamples, BLOCK):
        draw = generator(seed, "bootstrap", start)
        rows = torch.randint(n, (min(BLOCK, resamples - start), n), generator=draw)
        means.append(values[rows].mean(1))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.cat(means).quantile(ends).tolist()
    return low, high


def paired_difference(
    a: Tensor, b: Tensor, seed: int, resamples: int = 9999, level: float = 0.95
) -> PairedDifference:
    """Of two models' scores (n,) for the same prompts and noise: mean of a - b, interval, p.

    For outcomes 0 and 1, McNemar's exact test and the interval of Bonett & Price 2012; for other
    scores, `resamples` random sign flips of the differences (whose least p is 1/(resamples + 1))
    and the bootstrap. ValueError unless a and b go together.
    """
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"scores of shapes {tuple(a.shape)} and {tuple(b.shape)}: no pairs")
    gaps = a - b
    if bool((((a == 0) | (a == 1)) & ((b == 0) | (b == 1))).all()):
        gained, lost = int((gaps > 0).sum()), int((gaps < 0).sum())
        low, high = _bonett_price(gained, lost, len(gaps), level)
        return PairedDifference(float(gaps.mean()), low, high, _mcnemar(gained, lost))
    low, high = bootstrap_mean_interval(gaps, seed, level=level)
    return PairedDifference(float(gaps.mean()), low, high, _sign_flips(gaps, seed, resamples))


def difference_interval(a: Tensor, b: Tensor, level: float = 0.95) -> Estimate:
    """The difference of two models' distances, from their bootstrap draws (r,) and (r,).

    Draw i of a and of b belong together: made with the same rows (`frechet_draws` with one seed),
    their common part cancels, and so does the bias of equal n. Normal, since a few hundred draws
    don't settle their own tails.
    """
    gaps = a.double() - b.double()
    margin = normal_quantile(level) * float(gaps.std())
    return Estimate(float(gaps.mean()), float(gaps.mean()) - margin, float(gaps.mean()) + margin)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the order given.

    To reject those at most 0.05 errs at all with probability 0.05 at most, whatever they depend on.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def _mcnemar(gained: int, lost: int) -> float:
    """Two-sided: of the pairs that differ, each goes either way with probability 1/2."""
    pairs = gained + lost
    tail, ways = 0, 1
    for i in range(min(gained, lost) + 1):
        tail += ways
        ways = ways * (pairs - i) // (i + 1)
    return min(1.0, 2 * tail / 2**pairs)


def _bonett_price(gained: int, lost: int, pairs: int, level: float) -> tuple[float, float]:
    """Wald's interval with one more gain and one more loss, sound when there are few of either."""
    up, down = (gained + 1) / (pairs + 2), (lost + 1) / (pairs + 2)
    margin = normal_quantile(level) * math.sqrt((up + down - (up - down) ** 2) / (pairs + 2))
    return max(-1.0, up - down - margin), min(1.0, up - down + margin)


def _sign_flips(gaps: Tensor, seed: int, resamples: int) -> float:
    """How often the mean of randomly flipped differences is at least as far from 0."""
    bar = abs(float(gaps.sum())) - 1e-12 * float(gaps.abs().sum())  # ties count, despite rounding
    as_far = 0
    for start in range(0, resamples, BLOCK):
        shape = (min(BLOCK, resamples - start), len(gaps))
        flips = torch.randint(2, shape, generator=generator(seed, "flips", start))
        as_far += int(((2 * flips - 1).double() @ gaps).abs().ge(bar).sum())
    return (1 + as_far) / (1 + resamples)
