"""The loss on held-out images at fixed times with fixed noise, so that two models can be compared:
training's own loss swings with the times that a batch happened to draw."""

from typing import Any

import torch

from fluxsmith.data.images import to_unit
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.settings import Settings
from fluxsmith.flow.path import flow_matching_loss
from fluxsmith.flow.timesteps import stratified_grid
from fluxsmith.pipeline import Pipeline
from fluxsmith.randomness import image_noise

IMAGES = 512
GRID = 8


@torch.no_grad()
def validation_loss(pipeline: Pipeline, reference: Reference, settings: Settings) -> dict[str, Any]:
    """The mean over t = (i + 1/2)/8, i = 0..7, and the loss at each t, over the first test images
    with their first captions."""
    data = reference.test
    count = min(IMAGES, len(data))
    x0 = pipeline.autoencoder.encode(to_unit(data.images[:count]).to(pipeline.device))
    eps = image_noise(pipeline.latent_shape, settings.seed, range(count)).to(pipeline.device)
    cond = pipeline.encode_text([data.captions[i][0] for i in data.labels[:count].tolist()])
    by_t = {}
    for t in stratified_grid(GRID).tolist():
        at = torch.full((count,), t, device=pipeline.device)
        losses = flow_matching_loss(lambda x, t: pipeline.velocity(x, t, cond), x0, eps, at)
        by_t[f"{t:g}"] = float(losses.mean())
    return {"mean": sum(by_t.values()) / GRID, "by_t": by_t, "images": count}
