"""Arms made equal: a key of an arm is fitted until the arm costs what the baseline costs."""

import json
import math
from bisect import bisect_left
from collections.abc import Callable
from functools import cache

from fluxsmith.config import RunConfig
from fluxsmith.config.types import MOST
from fluxsmith.errors import UserError

TOLERANCE = 0.02
NEIGHBOURS = 12  # candidates on either side of the target that are looked at
HEAD_SIZES = 3 / 4, 4 / 3  # of the base's: smallest and largest that are tried

Overrides = list[str]
Candidate = tuple[tuple[float, ...], Overrides]  # how far from usual it is, and what it changes
Candidates = tuple[int, Callable[[int], Candidate]]  # how many, and each, by its size


def fit(
    key: str, config: RunConfig, measure: Callable[[Overrides], float], target: float
) -> tuple[Overrides, float]:
    """The overrides for which `measure` is nearest to the target, and what it is then.

    Of sizes that are near enough the most usual one is taken: heads in multiples of 16, as long
    as the arm's own.
    """
    count, candidate = CANDIDATES[key](config)

    @cache
    def measured(place: int) -> float:
        return measure(candidate(place)[1])

    at = bisect_left(range(count), target, key=measured)
    near = range(max(0, at - NEIGHBOURS), min(count, at + NEIGHBOURS))
    errors = {i: abs(measured(i) / target - 1) for i in near}
    enough = [i for i, error in errors.items() if error <= TOLERANCE]
    if enough:
        best = min(enough, key=lambda i: (*candidate(i)[0], errors[i]))
    else:
        best = min(errors, key=errors.__getitem__)
    return candidate(best)[1], measured(best)


def check_equal(what: str, arm: str, cost: float, baseline: str, target: float) -> None:
    """Raises a UserError where an arm's cost is not within the tolerance of the baseline's."""
    if abs(cost / target - 1) > TOLERANCE:
        raise UserError(
            f"arms.{arm}: equal={what} can't be met within {TOLERANCE:.0%}: the nearest is "
            f"{cost:,.4g}, and {baseline} has {target:,.4g}; fit another key, or change the arm"
        )


def _widths(config: RunConfig) -> Candidates:
    """Every width that heads of even sizes make, and the rotary axes in the base's proportions."""
    model, found = config.model, dict[int, Candidate]()
    size = model.hidden_size // model.num_heads
    for heads in range(1, 4 * model.num_heads + 1):
        for head in range(
            2 * math.ceil(HEAD_SIZES[0] * size / 2), int(HEAD_SIZES[1] * size) + 1, 2
        ):
            rest = [2 * round(head * share / size / 2) for share in model.axes_dim[1:]]
            axes = [head - sum(rest), *rest]
            unusual = (head != size and head % 16 > 0) + (head != size and head % 8 > 0)
            rank = float(unusual), abs(head - size), abs(heads - model.num_heads)
            if min(axes) > 0 and (heads * head not in found or rank < found[heads * head][0]):
                found[heads * head] = rank, [
                    f"model.hidden_size={heads * head}", f"model.num_heads={heads}",
                    f"model.axes_dim={json.dumps(axes)}",
                ]  # fmt: skip
    return len(found), lambda place: found[sorted(found)[place]]


def _ratios(config: RunConfig) -> Candidates:
    """Inner widths of the MLPs in multiples of 8."""
    hidden = config.model.hidden_size

    def candidate(place: int) -> Candidate:
        ratio = math.ceil(8 * (place + 1) / hidden * 1e6) / 1e6  # whose product is cut off
        return (), [f"model.mlp_ratio={ratio}"]

    return 8 * hidden, candidate


CANDIDATES: dict[str, Callable[[RunConfig], Candidates]] = {
    "train.steps": lambda _: (MOST, lambda place: ((), [f"train.steps={place + 1}"])),
    "model.hidden_size": _widths,
    "model.mlp_ratio": _ratios,
    **{
        key: lambda _, key=key: (257, lambda depth: ((), [f"{key}={depth}"]))  # type: ignore[misc]
        for key in ("model.depth", "model.depth_single_blocks")
    },
}
CHANGED = {key: (key,) for key in CANDIDATES} | {
    "model.hidden_size": ("model.hidden_size", "model.num_heads", "model.axes_dim")
}
