"""How straight the trajectories are, which decides how few steps are enough."""

from typing import Any

import torch

from fluxsmith.evaluation import straightness as numerics
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.samples import Samples
from fluxsmith.pipeline import Pipeline
from fluxsmith.randomness import image_noise

BATCH = 100
STEPS = 16


@torch.no_grad()
def straightness(pipeline: Pipeline, reference: Reference, samples: Samples) -> dict[str, Any]:
    """0 is straight; along the guided velocity, with the samples' own prompts and noise."""
    settings = samples.settings
    count = min(settings.trajectories, len(samples))
    errors, lengths = [], []
    times = torch.empty(0)
    with pipeline.drawing("float32"):
        for start in range(0, count, BATCH):
            rows = range(start, min(start + BATCH, count))
            cond = pipeline.encode_text(samples.prompts[rows.start : rows.stop])
            noise = image_noise(pipeline.latent_shape, settings.seed, rows).to(pipeline.device)
            velocity = pipeline.guided_velocity(cond, settings.guidance)
            error, length, times = numerics.path_errors(velocity, noise, STEPS)
            errors.append(error)
            lengths.append(length)
    found = numerics.straightness(torch.cat(errors, dim=1), torch.cat(lengths), times)
    return {
        "value": found.overall.value,
        "interval": (found.overall.low, found.overall.high),
        "by_t": {f"{t:g}": value for t, value in found.profile},
        "trajectories": count,
    }
