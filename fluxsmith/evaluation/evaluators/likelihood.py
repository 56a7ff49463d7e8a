"""Bits per dimension of test images: how well the model codes them, by the probability flow."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fluxsmith.errors import UserError
from fluxsmith.evaluation import likelihood as numerics
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.samples import Samples
from fluxsmith.pipeline import Pipeline

BATCH = 50
STEPS = 50
PROBES = 2


def likelihood(pipeline: Pipeline, reference: Reference, samples: Samples) -> dict[str, Any]:
    """Of the first test images with their first captions, without guidance; an upper bound of the
    bits of the images, with the error over images and the estimator's own spread."""
    if pipeline.autoencoder.digest is not None:
        raise UserError("likelihood: that of latents says nothing about images; leave it out")
    settings, data = samples.settings, reference.test
    count = min(settings.likelihood_images, len(data))
    found = []
    with pipeline.drawing("float32"), frozen(pipeline):
        for start in range(0, count, BATCH):
            rows = range(start, min(start + BATCH, count))
            images = data.images[rows.start : rows.stop].to(pipeline.device)
            labels = data.labels[rows.start : rows.stop].tolist()
            with torch.no_grad():
                cond = pipeline.encode_text([data.captions[label][0] for label in labels])
            velocity = pipeline.guided_velocity(cond, 1.0)
            x0 = numerics.dequantise(images, settings.seed, rows)
            found.append(numerics.log_likelihood(velocity, x0, settings.seed, rows, STEPS, PROBES))
    bits = numerics.bits_per_dimension(torch.cat(found), data.images[0].numel())
    return {
        "bits_per_dimension": bits.mean,
        "stderr": bits.standard_error,
        "probe_spread": bits.probe_spread,
        "images": bits.images,
        "steps": STEPS,
        "probes": PROBES,
    }


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, no gradient is computed for the weights, only through them."""
    learned = [p for p in module.parameters() if p.requires_grad]
    for p in learned:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learned:
            p.requires_grad_(True)
