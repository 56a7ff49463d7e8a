"""How much the samples of one prompt differ from one another, against the data's own variety."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fluxsmith.evaluation.frechet import as_rows
from fluxsmith.evaluation.statistics import Estimate, normal_quantile


@dataclass(frozen=True)
class Diversity:
    overall: Estimate  # 0: one image a label; 1: as diverse as the data; over labels found in both
    by_label: dict[int, float]


def diversity(
    samples: Tensor,
    sample_labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    level: float = 0.95,
) -> Diversity:
    """The mean squared distance between two samples of a label over that between two references.

    Features are (n, d) and (m, d), labels (n,) and (m,), those of samples as prompted. `overall`
    divides the means over labels, each label weighing the same; its interval is the delta method's
    and covers the chance in both sets. A label with fewer than two rows in either set, or whose
    references are all the same, is left out; ValueError if that leaves none.
    """
    ours, theirs = _spreads(samples, sample_labels), _spreads(references, reference_labels)
    labels = [label for label in sorted(ours.keys() & theirs.keys()) if theirs[label][0] > 0]
    if not labels:
        raise ValueError("no label has two samples and two different references")
    above, above_variance = _mean([ours[label] for label in labels])
    below, below_variance = _mean([theirs[label] for label in labels])
    ratio = above / below
    error = (above_variance + ratio**2 * below_variance) ** 0.5 / below
    margin = normal_quantile(level) * error
    return Diversity(
        Estimate(ratio, max(0.0, ratio - margin), ratio + margin),
        {label: ours[label][0] / theirs[label][0] for label in labels},
    )


def _spreads(features: Tensor, labels: Tensor) -> dict[int, tuple[float, float]]:
    """By label, the mean squared distance of two of its rows, and the variance of that mean.

    Over all pairs i != j the mean of |x_i - x_j|^2 is 2/(n - 1) sum |x_i - mean|^2, so the pairs
    need not be formed.
    """
    rows, labels = as_rows(features), labels.cpu()
    if labels.shape != rows.shape[:1]:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; {len(rows)} rows need as many")
    found = {}
    for label in labels.unique().tolist():
        part = rows[labels == label]
        n = len(part)
        if n < 2:
            continue
        each = 2 * n / (n - 1) * (part - part.mean(0)).square().sum(1)  # (n,)
        found[int(label)] = float(each.mean()), float(each.var() / n)
    return found


def _mean(spreads: list[tuple[float, float]]) -> tuple[float, float]:
    """The mean over labels and its variance."""
    values, variances = torch.tensor(spreads, dtype=torch.float64).T
    return float(values.mean()), float(variances.sum()) / len(spreads) ** 2
