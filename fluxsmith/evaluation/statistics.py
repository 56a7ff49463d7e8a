"""Confidence intervals of what was measured, and tests of whether two models differ. All are at
95%; SciPy does what it can."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from fluxsmith.randomness import generator

LEVEL = 0.95


class Estimate(NamedTuple):
    value: float
    low: float  # the ends of its confidence interval
    high: float

    @property
    def interval(self) -> tuple[float, float]:
        return self.low, self.high


def normal_interval(
    value: float, error: float, least: float = -math.inf, most: float = math.inf
) -> Estimate:
    """With the interval of a normal distribution of this standard error, cut off at both ends."""
    margin = float(scipy.stats.norm.ppf((1 + LEVEL) / 2)) * error
    return Estimate(value, *(min(max(v, least), most) for v in (value - margin, value + margin)))


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927), sound near 0 and 1 and for small n."""
    low, high = scipy.stats.binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return float(low), float(high)


def paired_difference(a: Tensor, b: Tensor) -> tuple[Estimate, float]:
    """Of two models' outcomes (n,), 0 or 1, for the same prompts and noise: mean of a - b, and p.

    p is McNemar's exact test: of the pairs that differ, each goes either way with probability 1/2.
    The interval is that of Bonett & Price 2012: Wald's with one more gain and one more loss, sound
    when there are few of either.
    """
    gained, lost, pairs = int((a > b).sum()), int((a < b).sum()), len(a)
    p = float(scipy.stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    up, down = (gained + 1) / (pairs + 2), (lost + 1) / (pairs + 2)
    error = math.sqrt((up + down - (up - down) ** 2) / (pairs + 2))
    _, low, high = normal_interval(up - down, error, -1, 1)
    return Estimate((gained - lost) / pairs, low, high), p


def difference(a: Tensor, b: Tensor, margin: float = 0) -> tuple[Estimate, float]:
    """Of two models' distances, from their bootstrap draws (r,) and (r,): mean of a - b, and p of
    a difference of no more than `margin`.

    Draw i of a and of b belong together: made with the same rows (`frechet_draws` with one seed),
    their common part cancels, and so does the bias of equal n. Normal, since a few hundred draws
    say little about their own tails.
    """
    gaps = a.double() - b.double()
    value, error = float(gaps.mean()), float(gaps.std())
    beyond = max(0.0, abs(value) - margin)
    p = float(2 * scipy.stats.norm.sf(beyond / error)) if error else float(beyond == 0)
    return normal_interval(value, error), p


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the order given.

    Rejecting those of at most 0.05 makes any false claim with probability 0.05 at most, however
    the tests depend on each other.
    """
    p, order = np.asarray(p_values), np.argsort(p_values)
    steps = (p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return np.maximum.accumulate(steps)[order.argsort()].tolist()


def some_rows(rows: Tensor, limit: int, *address: str) -> Tensor:
    """At most `limit` of the rows, at random by a fixed address: they may be in an order."""
    if len(rows) <= limit:
        return rows
    return rows[torch.randperm(len(rows), generator=generator(*address))[:limit]]
