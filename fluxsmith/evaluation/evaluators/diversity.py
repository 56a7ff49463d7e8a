"""How much the samples of one prompt differ, against how much the data of one label do."""

from typing import Any

from fluxsmith.evaluation import diversity as numerics
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.samples import Samples
from fluxsmith.pipeline import Pipeline


def diversity(pipeline: Pipeline, reference: Reference, samples: Samples) -> dict[str, Any]:
    """In the judge's features: 1 is as diverse as the training images, 0 one picture a prompt."""
    found = numerics.diversity(
        samples.features, samples.labels, reference.train_features, reference.train.class_labels
    )
    names = reference.class_names
    return {
        "overall": found.overall.value,
        "interval": (found.overall.low, found.overall.high),
        "by_label": {names[label]: value for label, value in found.by_label.items()},
    }
