"""Whether samples are copies of training images."""

from typing import Any

import torch

from fluxsmith.data.images import to_unit
from fluxsmith.evaluation import nearest
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.samples import Samples
from fluxsmith.pipeline import Pipeline

MOST = 5000  # samples, and test images, whose nearest training image is looked for
QUANTILES = 101
PAIRS = 12  # the closest ones, to look at


def memorisation(pipeline: Pipeline, reference: Reference, samples: Samples) -> dict[str, Any]:
    """Distances in pixels, in [-1, 1], of samples to their nearest training image against those of
    test images; the share of near-copies; the closest pairs."""
    train = to_unit(reference.train.images).flatten(1)
    ours = to_unit(samples.pictures(slice(0, MOST))).flatten(1)
    test = to_unit(reference.test.images[:MOST]).flatten(1)
    distances, neighbours = nearest.nearest_neighbours(ours, train)
    real, _ = nearest.nearest_neighbours(test, train)
    found = nearest.memorisation(distances[:, 0], real[:, 0])
    at = torch.linspace(0, 1, QUANTILES, dtype=torch.float64)
    closest = distances[:, 0].argsort()[:PAIRS]
    return {
        "near_copies": found.near_copies.value,
        "interval": (found.near_copies.low, found.near_copies.high),
        "test_near_copies": found.expected,
        "threshold": found.threshold,
        "auc": found.auc.value,
        "auc_interval": (found.auc.low, found.auc.high),
        "samples": found.samples,
        "samples_quantiles": distances[:, 0].quantile(at).tolist(),
        "test_quantiles": real[:, 0].quantile(at).tolist(),
        "closest": [
            {
                "sample": i,
                "training_image": int(neighbours[i, 0]),
                "distance": float(distances[i, 0]),
            }
            for i in closest.tolist()
        ],
    }
