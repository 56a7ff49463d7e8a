"""Fidelity and variety told apart: do samples look like the data, and is all of the data there?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fluxsmith.evaluation.frechet import as_rows
from fluxsmith.evaluation.nearest import nearest_neighbours
from fluxsmith.randomness import generator

BLOCK = 512
ROUNDING = 1e-12  # relative; a tie counts as within whichever way float64 rounded it


@dataclass(frozen=True)
class Manifold:
    precision: float  # share of samples in the ball of some data point
    recall: float  # share of data points in the ball of some sample
    density: float  # balls of data points that a sample is in, over k; 1 for equal distributions
    coverage: float  # share of data points that have a sample in their ball
    k: int
    samples: int  # rows used
    references: int


def manifold(samples: Tensor, references: Tensor, k: int = 5, limit: int = 5000) -> Manifold:
    """Precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2), density and coverage (Naeem
    et al. 2020, section 3) of features (n, d) against (m, d).

    A point's ball reaches to its k-th nearest neighbour in its own set, itself not counted. The
    figures depend on the numbers of rows: of either set at most `limit` rows are used, chosen at
    random by a fixed address (not the first ones, since data and prompts may be in order), so
    compare figures of equal k, n and m only. ValueError unless both have more than k rows.
    """
    fake, real = _at_most(as_rows(samples), limit), _at_most(as_rows(references), limit)
    if min(len(fake), len(real)) <= k:
        raise ValueError(f"k={k} needs more than {k} rows, not {len(fake)} and {len(real)}")
    centre = real.mean(0)
    fake, real = fake - centre, real - centre
    real_radius, fake_radius = _radius(real, k), _radius(fake, k)
    balls = _balls_around(fake, real, real_radius)  # (n,)
    nearest_fake = nearest_neighbours(real, fake)[0][:, 0]
    return Manifold(
        precision=_share(balls > 0),
        recall=_share(_balls_around(real, fake, fake_radius) > 0),
        density=float(balls.double().mean()) / k,
        coverage=_share(nearest_fake <= real_radius),
        k=k,
        samples=len(fake),
        references=len(real),
    )


def _radius(points: Tensor, k: int) -> Tensor:
    """The distance of each point to its k-th nearest neighbour: (n,).

    Each point is its own nearest, or as near as it, so that the k + 1st of all is meant.
    """
    return nearest_neighbours(points, points, k + 1)[0][:, k]


def _balls_around(points: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """How many of the balls (m, d), (m,) each point (n, d) is in: (n,)."""
    counts = torch.zeros(len(points), dtype=torch.long)
    limit = radius.square() - centres.square().sum(1) * (1 - ROUNDING)  # (m,)
    for i in range(0, len(points), BLOCK):
        part = points[i : i + BLOCK]
        norms = part.square().sum(1, keepdim=True) * (1 - ROUNDING)
        counts[i : i + BLOCK] = (norms - 2 * part @ centres.T <= limit).sum(1)
    return counts


def _at_most(rows: Tensor, limit: int) -> Tensor:
    if len(rows) <= limit:
        return rows
    return rows[torch.randperm(len(rows), generator=generator("manifold", "rows"))[:limit]]


def _share(which: Tensor) -> float:
    return float(which.double().mean())
