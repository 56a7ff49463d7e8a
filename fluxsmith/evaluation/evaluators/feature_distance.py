"""How far the samples' features lie from the data's, in the judge's eyes: Fréchet and kernel
distance, precision and recall, density and coverage, each beside what real images score."""

from typing import Any

import torch
from torch import Tensor

from fluxsmith.evaluation.frechet import GaussianStatistics, frechet_interval
from fluxsmith.evaluation.kernel import kernel_interval
from fluxsmith.evaluation.manifold import manifold
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.samples import Samples
from fluxsmith.pipeline import Pipeline
from fluxsmith.randomness import generator

ROWS = 5000  # of either side, for what compares every row with every other


def feature_distance(pipeline: Pipeline, reference: Reference, samples: Samples) -> dict[str, Any]:
    """The distances of samples from the training images with 95% intervals, and as the floor those
    of test images, of which as many are taken as there are samples, where there are as many.

    Figures of different numbers of samples don't compare: the Fréchet distance grows as they get
    fewer, and the floor with it.
    """
    seed = samples.settings.seed
    train, test = reference.train_features, _at_most(reference.test_features, len(samples))
    data = GaussianStatistics.of(train)
    near = _at_most(train, ROWS)
    found: dict[str, Any] = {"samples": len(samples), "reference_images": len(train)}
    ours = frechet_interval(samples.features, data, seed)
    floor = frechet_interval(test, data, seed)
    found["frechet"] = {
        "value": ours.distance,
        "interval": (ours.low, ours.high),
        "unbiased": ours.unbiased,
        "floor": floor.distance,
    }
    kernel = kernel_interval(_at_most(samples.features, ROWS), near)
    found["kernel"] = {
        "value": kernel.value,
        "interval": (kernel.low, kernel.high),
        "floor": kernel_interval(_at_most(test, ROWS), near).value,
    }
    sampled, real = manifold(samples.features, train), manifold(test, train)
    for name in ("precision", "recall", "density", "coverage"):
        found[name] = {"value": getattr(sampled, name), "floor": getattr(real, name)}
    return found


def _at_most(rows: Tensor, limit: int) -> Tensor:
    """Some of the rows at random, by a fixed address: data and prompts may be in order."""
    if len(rows) <= limit:
        return rows
    return rows[torch.randperm(len(rows), generator=generator("evaluation", "rows"))[:limit]]
