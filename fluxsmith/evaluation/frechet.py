"""The Fréchet distance between the features of samples and of data, each taken for a Gaussian."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fluxsmith.evaluation.statistics import normal_quantile
from fluxsmith.randomness import generator


class GaussianStatistics:
    """Mean and covariance of rows that arrive in batches, in float64 on the CPU.

    Keeps the sum of outer products about the running mean and merges by Chan, Golub & LeVeque
    1983, so that features far from zero lose no digits.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)  # (d,)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)  # sum (x - mean)(x - mean)'

    @classmethod
    def of(cls, features: Tensor) -> "GaussianStatistics":
        """The statistics of features (n, d)."""
        found = cls(features.shape[1])
        found.update(features)
        return found

    def update(self, features: Tensor) -> None:
        """Adds rows (n, d). ValueError if one isn't finite: a mean would hide which."""
        rows = as_rows(features)
        batch = GaussianStatistics(rows.shape[1])
        if len(rows):
            batch.count = len(rows)
            batch.mean = rows.mean(0)
            centred = rows - batch.mean
            batch._scatter = centred.T @ centred
        self.merge(batch)

    def merge(self, other: "GaussianStatistics") -> None:
        """Adds everything that `other` has seen."""
        if other.mean.shape != self.mean.shape:
            raise ValueError(f"features of width {len(other.mean)} don't go with {len(self.mean)}")
        total = self.count + other.count
        if total == 0:
            return
        gap = other.mean - self.mean
        self._scatter = self._scatter + other._scatter
        self._scatter += torch.outer(gap, gap) * (self.count * other.count / total)
        self.mean = self.mean + gap * (other.count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """(d, d), divided by n - 1. ValueError below two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two rows or more, not {self.count}")
        return self._scatter / (self.count - 1)


@dataclass(frozen=True)
class FrechetEstimate:
    distance: float  # from the samples as they are, the figure that others report
    unbiased: float  # the same less the bootstrap's estimate of its bias; may be below 0
    low: float  # 95% interval of the distance at infinitely many samples
    high: float


def as_rows(features: Tensor) -> Tensor:
    """Features (n, d) in float64 on the CPU; ValueError for another shape, NaN or infinity."""
    if features.ndim != 2:
        raise ValueError(f"features have shape {tuple(features.shape)}; (n, d) is needed")
    rows = features.detach().cpu().double()
    if not rows.isfinite().all():
        raise ValueError("features hold NaN or infinity")
    return rows


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """|mean_a - mean_b|^2 + tr(Ca + Cb - 2 (Ca Cb)^(1/2)), a squared distance.

    Dowson & Landau 1982; as a score of generators Heusel et al. 2017, eq. 6. It is biased
    upwards for few samples, about in proportion to 1/n: compare figures of equal n only.
    """
    return _distance(a.mean, a.covariance, b.mean, _root(b.covariance))


def frechet_draws(
    features: Tensor, reference: GaussianStatistics, seed: int, resamples: int = 100
) -> Tensor:
    """The distance of `resamples` bootstrap draws of the rows of features (n, d): (resamples,).

    Draw r takes the same rows for every model of equal n and seed, so that draws of two models
    with the same prompts and noise can be subtracted (`difference_interval`).
    """
    rows = as_rows(features)
    centre, n = rows.mean(0), len(rows)
    rows = rows - centre
    root = _root(reference.covariance)
    draws = []
    for r in range(resamples):
        drawn = torch.randint(n, (n,), generator=generator(seed, "frechet", r))
        counts = drawn.bincount(minlength=n).double()  # (n,), how often each row is drawn
        mean = counts @ rows / n
        second = rows.T @ (counts[:, None] * rows)
        covariance = (second - n * torch.outer(mean, mean)) / (n - 1)
        draws.append(_distance(mean + centre, covariance, reference.mean, root))
    return torch.tensor(draws, dtype=torch.float64)


def frechet_interval(
    features: Tensor,
    reference: GaussianStatistics,
    seed: int,
    resamples: int = 100,
    level: float = 0.95,
) -> FrechetEstimate:
    """The distance of features (n, d) from a reference that is held fixed, with its interval.

    A bootstrap draw has the bias of n samples twice over, so a percentile interval would lie
    wholly above the truth. This one takes the bias off first: 2 distance - mean(draws) +- z
    sd(draws), the normal interval of Davison & Hinkley 1997, chapter 5, cut at 0. Hence `distance`
    itself may lie above `high` where n isn't much larger than d; the interval is about the model,
    not about its n samples. Near a distance of 0 it is wider than it need be.
    """
    distance = frechet_distance(GaussianStatistics.of(features), reference)
    draws = frechet_draws(features, reference, seed, resamples)
    unbiased = 2 * distance - float(draws.mean())
    margin = normal_quantile(level) * float(draws.std())
    return FrechetEstimate(
        distance, unbiased, max(0.0, unbiased - margin), max(0.0, unbiased + margin)
    )


def _distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, root_b: Tensor) -> float:
    """From the root of Cb, since (Ca Cb)^(1/2) and (Cb^(1/2) Ca Cb^(1/2))^(1/2) have one trace.

    The latter is symmetric, so its eigenvalues are real; rounding may leave those of a singular
    covariance a little below 0.
    """
    product = root_b @ covariance_a @ root_b
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    gap = (mean_a - mean_b).square().sum()
    found = gap + covariance_a.trace() + root_b.square().sum() - 2 * cross
    return max(0.0, float(found))


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix (d, d), singular or not."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
