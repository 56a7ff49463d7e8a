"""What runs say of a question: differences paired by seed, their intervals and p values, and the
smallest difference that so many seeds could have shown. SciPy does what it can."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy import optimize, stats

from fluxsmith.evaluation.statistics import holm

POWER = 0.8
MOST_SEEDS = 10_000

Values = Mapping[str, Mapping[int, float]]  # a figure by arm and seed


@dataclass(frozen=True)
class Mean:
    """A figure of an arm over its seeds; the interval is Student's, None of one seed."""

    value: float
    interval: tuple[float, float] | None
    deviation: float | None
    seeds: int


@dataclass(frozen=True)
class Difference:
    """An arm's figure less the baseline's, over the seeds that both have."""

    mean: float
    interval: tuple[float, float]
    deviation: float  # of the differences
    p: float  # NaN where they are all the same, which says nothing of chance
    seeds: int


def mean(values: Sequence[float], alpha: float) -> Mean:
    """The mean and Student's interval at 1 - alpha."""
    n, value = len(values), float(np.mean(values))
    if n < 2:
        return Mean(value, None, None, n)
    deviation = float(np.std(values, ddof=1))
    margin = float(stats.t.ppf(1 - alpha / 2, n - 1)) * deviation / math.sqrt(n)
    return Mean(value, (value - margin, value + margin), deviation, n)


def paired(
    arm: Mapping[int, float], baseline: Mapping[int, float], alpha: float
) -> Difference | None:
    """The paired t test of an arm against the baseline, both by seed; None of fewer than two."""
    gaps = np.array([arm[seed] - baseline[seed] for seed in arm if seed in baseline])
    if len(gaps) < 2:
        return None
    if np.ptp(gaps) <= 1e-12 * np.abs(gaps).max():
        value = float(gaps[0])
        return Difference(value, (value, value), 0.0, math.nan, len(gaps))
    found, of = stats.ttest_1samp(gaps, 0), mean(gaps.tolist(), alpha)
    assert of.interval is not None
    assert of.deviation is not None
    return Difference(of.value, of.interval, of.deviation, float(found.pvalue), of.seeds)


def power(difference: float, deviation: float, seeds: int, alpha: float) -> float:
    """The probability that a paired t test at `alpha`, of both sides, sees a true difference on
    the side where it is: the noncentral t distribution with noncentrality difference sqrt(n) /
    deviation (Cohen 1988, section 2.3)."""
    edge = stats.t.ppf(1 - alpha / 2, seeds - 1)
    shift = abs(difference) * math.sqrt(seeds) / deviation
    return float(stats.nct.sf(edge, seeds - 1, shift))


def smallest_visible(deviation: float, seeds: int, alpha: float) -> float:
    """The difference that would be seen with probability `POWER`."""
    if deviation == 0:
        return 0.0
    surely = 2 * float(stats.t.ppf(1 - alpha / 2, seeds - 1)) * deviation / math.sqrt(seeds)
    missing = partial(_missing_power, deviation, seeds, alpha)
    while missing(surely) < 0:
        surely *= 2
    return float(optimize.brentq(missing, 0, surely))


def _missing_power(deviation: float, seeds: int, alpha: float, difference: float) -> float:
    return power(difference, deviation, seeds, alpha) - POWER


def seeds_needed(difference: float, deviation: float, alpha: float) -> int:
    """How many seeds would show a difference with probability `POWER`."""
    low, high = 1, 2
    while high < MOST_SEEDS and power(difference, deviation, high, alpha) < POWER:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        enough = power(difference, deviation, middle, alpha) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high


def compare(
    figures: Mapping[str, Values], baseline: str, alpha: float, primary: str
) -> list[dict[str, Any]]:
    """Every arm against the baseline in every figure. p values of the primary figure are corrected
    for the number of arms, those of the others for the number of them all (Holm 1979).

    `visible`, the smallest difference that would have been seen, is of a test at alpha over the
    number of those that it is corrected with, which Holm's correction is at its strictest.
    """
    rows: list[dict[str, Any]] = []
    tests = {True: 0, False: 0}
    for name, values in figures.items():
        tests[name == primary] += len(values.keys() - {baseline})
    for name, values in figures.items():
        others = [arm for arm in values if arm != baseline]
        strict = alpha / max(1, tests[name == primary])
        for arm in others:
            found = paired(values[arm], values[baseline], alpha)
            row = {"figure": name, "arm": arm, "primary": name == primary}
            if found is not None:
                visible = smallest_visible(found.deviation, found.seeds, strict)
                row |= {**asdict(found), "visible": visible}
            rows.append(row)
    for kind in (True, False):
        tested = [
            row for row in rows if row["primary"] == kind and not math.isnan(row.get("p", math.nan))
        ]
        for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row["p_adjusted"] = p
    return rows
