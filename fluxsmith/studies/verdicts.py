"""What a comparison says, in a plain sentence."""

import math
from collections.abc import Mapping
from typing import Any

from fluxsmith.evaluation.evaluator import Score
from fluxsmith.evaluation.report.wording import p_value, percent
from fluxsmith.studies.analysis import MOST_SEEDS, seeds_needed


def amount(score: Score, *values: float, scale: float | None = None, sign: bool = False) -> str:
    """A difference of a figure, or the ends of its interval: in percentage points where the figure
    is a share; as many digits as `scale` needs."""
    scale = max(map(abs, values)) if scale is None else scale
    texts = [score.show(float(value), scale).removesuffix("%") for value in values]
    signed = [f"+{t}" if sign and v > 0 else t for t, v in zip(texts, values, strict=True)]
    return " to ".join(signed) + (" points" if score.show is percent else "")


def verdict(
    row: Mapping[str, Any], score: Score, baseline: str, alpha: float, smallest: float, arms: int
) -> str:
    """What a row of `compare` says of an arm against the baseline; `smallest` is the difference
    that matters, `arms` the number of those compared."""
    if "mean" not in row:
        return f"no answer: fewer than two seeds of it and of {baseline} gave this figure"
    gap, ends = row["mean"], row["interval"]
    if math.isnan(row["p"]):
        what = f"{amount(score, gap, sign=True)}" if gap else f"the same as {baseline}"
        return (
            f"{what} with every seed, without any spread, so that chance can't be judged; draw "
            f"more samples, or take more seeds"
        )
    p, scale = row["p_adjusted"], max(map(abs, ends))
    said = f"p {'' if p < 0.0001 else '= '}{p_value(p)}"
    if p < alpha:
        better = "better" if (gap > 0) == (score.better == "higher") else "worse"
        sizes = amount(score, *sorted(map(abs, ends))).removesuffix(" points")  # of one sign
        less = f", which is less than the {amount(score, smallest)} that matter"
        return (
            f"{better} by {amount(score, abs(gap), scale=scale)} ({sizes}), {said}"
            f"{less if abs(gap) < smallest else ''}"
        )
    none_seen = f"no difference seen ({amount(score, *ends, sign=True)}, {said})"
    visible = amount(score, row["visible"])
    if row["visible"] > smallest:
        needed = seeds_needed(smallest, row["deviation"], alpha / arms)
        many = f"about {needed:,}" if needed < MOST_SEEDS else f"more than {MOST_SEEDS:,}"
        return (
            f"too noisy for its question: {none_seen}, {amount(score, smallest)} matter, and only "
            f"{visible} could have been seen; {many} seeds would do"
        )
    if scale < smallest:
        return f"{none_seen}; one of {visible} would have been"
    return f"{none_seen}; one of {visible} would probably have been"
