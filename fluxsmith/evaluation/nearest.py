"""The nearest training images of each sample, exactly, and whether they are nearer than chance."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fluxsmith.evaluation.statistics import Estimate, normal_quantile, wilson_interval

SPARE = 8  # candidates beyond k whose distance is computed exactly
REFERENCES = 8192  # references that a block of queries meets at a time


def nearest_neighbours(
    queries: Tensor, references: Tensor, k: int = 1, chunk: int = 512
) -> tuple[Tensor, Tensor]:
    """Euclidean distances (n, k), ascending, in float64, and indices (n, k) into references.

    For queries (n, d) and references (m, d); of equal distances the lower index comes first.
    Candidates are found with matrix products in float32, which lose digits to cancellation; their
    distances are then computed from the differences in float64, and queries for which rounding
    might have kept a nearer reference out are searched again in float64. ValueError if m < k.
    """
    queries, references = _rows(queries), _rows(references)
    if not 1 <= k <= len(references):
        raise ValueError(f"k={k} nearest of {len(references)} references")
    centre = references.mean(0, dtype=torch.float64).to(references.dtype)
    centred = (references - centre).float()
    found = []
    for part in queries.split(chunk):
        near_0 = part - centre  # smaller numbers, of which products lose fewer digits
        squares, candidates = _candidates(near_0.float(), centred, k + SPARE)
        distances, indices = _exact(part.double(), references, candidates, k)
        if squares.shape[1] < len(references):
            for row in _unsure(near_0.double(), squares[:, -1], distances[:, -1]).tolist():
                distances[row], indices[row] = _search(part[row].double(), references, k)
        found.append((distances, indices))
    return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])


def _rows(features: Tensor) -> Tensor:
    """Rows (n, d) on the CPU, float64 as such and all else in float32: sets of images are large."""
    rows = features.detach().cpu()
    rows = rows if rows.dtype == torch.float64 else rows.float()
    if rows.ndim != 2 or not rows.isfinite().all():
        raise ValueError(f"rows (n, d) of finite numbers are needed; shape {tuple(rows.shape)}")
    return rows


def _candidates(queries: Tensor, references: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` least squared distances as float32 gives them, ascending, and whose they are."""
    best = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.long)
    norms = queries.square().sum(1, keepdim=True)  # (n, 1)
    for start in range(0, len(references), REFERENCES):
        part = references[start : start + REFERENCES]
        squares = (norms + part.square().sum(1)).addmm_(queries, part.T, alpha=-2)
        here, which = squares.topk(min(count, len(part)), largest=False)
        best = torch.cat([best, here], 1)
        indices = torch.cat([indices, which + start], 1)
        best, order = best.topk(min(count, best.shape[1]), largest=False)
        indices = indices.gather(1, order)
    return best, indices


def _exact(
    queries: Tensor, references: Tensor, candidates: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k nearest of each query's candidates (n, c), from differences in float64."""
    candidates = candidates.sort(1).values
    gaps = references[candidates].double().sub_(queries[:, None])  # (n, c, d)
    distances = torch.linalg.vector_norm(gaps, dim=2)
    distances, order = distances.sort(dim=1, stable=True)
    return distances[:, :k], candidates.gather(1, order[:, :k])


def _unsure(queries: Tensor, last: Tensor, farthest: Tensor) -> Tensor:
    """Queries whose k-th distance isn't below that of the last candidate by more than rounding.

    A float32 product of length d errs by at most about d 2^-24 |x||y| (Higham 2002, section 3.1),
    and so do the norms; all of it is doubled for the additions. Only references no farther than
    the k-th matter, which bounds |y|.
    """
    unit = queries.shape[1] * 2.0**-24
    norm = torch.linalg.vector_norm(queries, dim=1)
    slack = 4 * unit * (norm.square() + (norm + farthest).square())
    return (farthest.square() > last.double() - slack).nonzero()[:, 0]


def _search(query: Tensor, references: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of one query (d,) among all references, from differences in float64."""
    blocks = references.split(REFERENCES)
    distances = torch.cat(
        [torch.linalg.vector_norm(block.double() - query, dim=1) for block in blocks]
    )
    distances, order = distances.sort(stable=True)
    return distances[:k], order[:k]


@dataclass(frozen=True)
class Memorisation:
    threshold: float  # the distance below which an image is called a near-copy
    near_copies: Estimate  # the share of samples below it
    expected: float  # the share of new images of the data's kind that is below it
    auc: Estimate  # P(a sample is farther from the training set than a test image is)
    samples: int


def memorisation(
    sample_distances: Tensor, test_distances: Tensor, quantile: float = 0.01, level: float = 0.95
) -> Memorisation:
    """Whether samples lie nearer to the training set than new images of the same kind do.

    Takes the distance of each sample, (n,), and of each test image, (m,), to its nearest training
    image. A near-copy is nearer than all but the `quantile` of test images: the yardstick is the
    data's own, so that the share is `expected` without copying, and more only with it. The
    smallest test distance would hang on one image, often a duplicate in the data.

    `auc` is the Mann-Whitney statistic over n m, Meehan et al. 2020, over the whole space
    without their division into cells: 1/2 for new images, below it for copies, above it for
    samples that are farther from the data, which underfit. Its interval follows DeLong et al. 1988.
    Typical samples (strong guidance) are near to the training set too, without being copies: look
    at the pairs before you accuse a model.
    """
    samples, tests = sample_distances.cpu().double(), test_distances.cpu().double()
    threshold = float(tests.quantile(quantile))
    near = int((samples < threshold).sum())
    return Memorisation(
        threshold,
        Estimate(near / len(samples), *wilson_interval(near, len(samples), normal_quantile(level))),
        float((tests < threshold).double().mean()),
        _auc(samples, tests, level),
        len(samples),
    )


def _auc(samples: Tensor, tests: Tensor, level: float) -> Estimate:
    """P(sample > test) + P(sample = test)/2, with the interval from each one's own share."""
    above = _share_below(samples, tests)  # (n,)
    below = 1 - _share_below(tests, samples)  # (m,)
    value = float(above.mean())
    margin = normal_quantile(level) * float(
        (above.var() / len(above) + below.var() / len(below)).sqrt()
    )
    return Estimate(value, max(0.0, value - margin), min(1.0, value + margin))


def _share_below(values: Tensor, others: Tensor) -> Tensor:
    """The share of `others` below each value, ties by half: (n,), by sorting."""
    ordered = others.sort().values
    less, at_most = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (less + at_most) / (2.0 * len(others))
