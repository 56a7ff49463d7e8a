"""The Fréchet distance between the features of samples and of data, each taken for a Gaussian."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fluxsmith.evaluation.statistics import Estimate, normal_interval
from fluxsmith.randomness import generator


@dataclass(frozen=True)
class Gaussian:
    mean: Tensor  # (d,), float64
    covariance: Tensor  # (d, d), divided by n - 1

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        """Of features (n, d), two or more."""
        rows = features.double()
        return cls(rows.mean(0), torch.cov(rows.T).reshape(2 * rows.shape[1:]))

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance, singular or not: (d, d)."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(Ca + Cb - 2 (Ca Cb)^(1/2)), a squared distance.

    Dowson & Landau 1982; as a score of generators Heusel et al. 2017, eq. 6. It is biased
    upwards for few samples, about in proportion to 1/n: compare figures of equal n only.

    (Ca Cb)^(1/2) has the trace of (Cb^(1/2) Ca Cb^(1/2))^(1/2), which is symmetric, so that its
    eigenvalues are real; rounding may leave those of a singular covariance a little below 0.
    """
    product = b.root @ a.covariance @ b.root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    gap = (a.mean - b.mean).square().sum()
    return max(0.0, float(gap + a.covariance.trace() + b.covariance.trace() - 2 * cross))


def frechet_draws(features: Tensor, reference: Gaussian, seed: int, resamples: int = 100) -> Tensor:
    """The distance of `resamples` bootstrap draws of the rows of features (n, d): (resamples,).

    Draw r takes the same rows for every model of equal n and seed, so that draws of two models
    with the same prompts and noise can be subtracted.
    """
    n, draws = len(features), []
    for r in range(resamples):
        drawn = torch.randint(n, (n,), generator=generator(seed, "frechet", r))
        draws.append(frechet_distance(Gaussian.of(features[drawn]), reference))
    return torch.tensor(draws, dtype=torch.float64)


def frechet_interval(
    features: Tensor, reference: Gaussian, seed: int, resamples: int = 100
) -> tuple[float, Estimate]:
    """The distance of features (n, d) from a reference that is held fixed, as others report it,
    and the estimate of what it would be for infinitely many samples.

    A bootstrap draw has the bias of n samples twice over. The estimate takes the bias off:
    2 distance - mean(draws) +- z sd(draws), the normal interval of Davison & Hinkley 1997, chapter
    5, its ends cut at 0. So the plain distance may lie above the interval where n isn't much larger
    than d. Near a distance of 0 the interval is wider than it need be.
    """
    distance = frechet_distance(Gaussian.of(features), reference)
    draws = frechet_draws(features, reference, seed, resamples)
    unbiased = 2 * distance - float(draws.mean())
    return distance, normal_interval(unbiased, float(draws.std()), least=0.0)
