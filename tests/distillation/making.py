"""Students as `fluxsmith distill` makes them, that are trained for a moment."""

from pathlib import Path

import torch

from fluxsmith import Pipeline
from fluxsmith.distillation.students import student_config
from fluxsmith.flow.path import flow_matching_loss
from fluxsmith.training.run import build_trainer

BRIEF = "train.steps=4", "train.sample_every=4", "train.batch_size=8"
QUICK = *BRIEF, "objective.trajectories=64"


def trainer_of(run: Path, steps: int | None, *overrides: str, match: bool = False):
    """The trainer of a new student."""
    quick = BRIEF if match else QUICK
    config = student_config(run, steps, [*quick, *overrides], match)
    return build_trainer(config, torch.device("cpu"))


def some(pipeline: Pipeline, n: int = 3):
    """x, t and prompts at random."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n, *pipeline.latent_shape, generator=draw)
    return x, torch.rand(n, generator=draw), ["three", "7", ""][:n]


@torch.no_grad()
def flow_matching_of_the_critic(objective, example, drawn):
    """Its loss for what was drawn of a batch of prompts, as the mean over its times (b,)."""
    cond, _ = objective.teacher.texts(example.batch.captions)
    losses = [
        flow_matching_loss(lambda x, t: objective.critic.velocity(x, t, cond), drawn, eps, t)
        for eps, t in zip(example.eps.transpose(0, 1), example.t.T, strict=True)
    ]
    assert len(losses) == 2
    return sum(losses) / 2
