"""The loss on held-out images at fixed times with fixed noise, so that two models can be compared:
training's own loss swings with the times that a batch happened to draw."""

from typing import Any

import torch
from torch import Tensor

from fluxsmith.data.images import to_unit
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.samples import Samples
from fluxsmith.flow.path import flow_matching_loss
from fluxsmith.flow.timesteps import stratified_grid
from fluxsmith.pipeline import Pipeline
from fluxsmith.randomness import image_noise

BATCH = 100
TIMES = 8
# The first is the grid of MLPerf Training's FLUX.1 benchmark, which takes in t = 0.
GRIDS = {"i/8": 0.0, "(i+1/2)/8": 0.5}


@torch.no_grad()
def validation_loss(pipeline: Pipeline, reference: Reference, samples: Samples) -> dict[str, Any]:
    """The mean loss over each grid of times and the loss at each time, with standard errors over
    images, for the first test images with the first caption of each and noise of their own."""
    count = min(samples.settings.validation_images, len(reference.test))
    grids = {}
    with pipeline.drawing("float32"):
        for name, offset in GRIDS.items():
            times = stratified_grid(TIMES, offset).tolist()
            losses = torch.cat(
                [
                    _losses(pipeline, reference, range(i, min(i + BATCH, count)), times, samples)
                    for i in range(0, count, BATCH)
                ],
                dim=1,
            )  # (times, images)
            at = {f"{t:g}": _mean(loss) for t, loss in zip(times, losses, strict=True)}
            grids[name] = {**_mean(losses.mean(0)), "by_t": at}
    return {"grids": grids, "images": count}


def _losses(
    pipeline: Pipeline, reference: Reference, rows: range, times: list[float], samples: Samples
) -> Tensor:
    """(times, b): the loss of some images at every time, each image with one noise."""
    data, device = reference.test, pipeline.device
    images = data.images[rows.start : rows.stop]
    x0 = pipeline.autoencoder.encode(to_unit(images).to(device))
    eps = image_noise(pipeline.latent_shape, samples.settings.seed, rows).to(device)
    captions = [data.captions[label][0] for label in data.labels[rows.start : rows.stop].tolist()]
    cond = pipeline.encode_text(captions)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return pipeline.velocity(x, t, cond)

    at = [torch.full((len(rows),), t, device=device) for t in times]
    return torch.stack([flow_matching_loss(velocity, x0, eps, t).cpu() for t in at])


def _mean(values: Tensor) -> dict[str, float]:
    return {"mean": float(values.mean()), "stderr": float(values.std() / len(values) ** 0.5)}
