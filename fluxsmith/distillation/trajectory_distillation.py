"""Trajectory distillation: a student's steps are held to its teacher's way from the same noise."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.data.loader import Batch
from fluxsmith.distillation.distillation import student_times
from fluxsmith.distillation.few_steps import FewStepSettings, check_drawn_in_few_steps
from fluxsmith.distillation.trajectories import Recipe, Trajectories
from fluxsmith.distillation.trajectory_objective import TrajectoryObjective
from fluxsmith.flow.path import beside
from fluxsmith.pipeline import Pipeline
from fluxsmith.text.encoder import TextInput
from fluxsmith.training.objective import Cost, Losses

KEPT = 4  # states of a trajectory, at least, so that one cache serves students of 1, 2 and 4 steps
# A student's few steps act as less guidance than its trajectories had, so these have more of it.
MORE = 1.1


@dataclass(frozen=True)
class Steps:
    """Trajectories, and which step of the student each is to teach."""

    batch: Trajectories
    step: Tensor  # (b,) whole numbers

    def split(self, parts: int) -> "list[Steps]":
        batches = self.batch.split(parts)
        return [Steps(*piece) for piece in zip(batches, self.step.chunk(parts), strict=True)]


@dataclass(frozen=True)
class Inputs:
    """What the losses are computed from: tensors on the device."""

    x: Tensor  # (b, c, h, w), where the student is before the step that it learns
    t: Tensor  # (b,)
    t_next: Tensor  # (b,)
    y_next: Tensor  # (b, c, h, w), where the teacher is after it
    text: TextInput


class TrajectoryDistillation(TrajectoryObjective):
    """The student's steps are held to its teacher's trajectory from the same noise.

    It starts where its own steps so far have brought it, without a gradient through them:

        x_{i+1} = x_i - (t_i - t_{i+1}) v(x_i, t_i),   x_0 = y_0 = noise
        L = | v(x_i, t_i) - (x_i - y_{i+1}) / (t_i - t_{i+1}) |,  of the element-wise mean

    Zhou et al. 2024, "Simple and Fast Distillation of Diffusion Models" (SFD), algorithm 1; each
    image of a batch learns one of the steps, in turn, so that all are in a batch. The trajectories
    are guided by 1 + MORE (w - 1), where w is the scale that the student is to draw like.
    """

    @dataclass(frozen=True)
    class Settings(FewStepSettings):
        trajectories: Annotated[int, Ge(1), "Trajectories of the teacher that are made."] = 3072
        solver_steps: Annotated[int, Ge(1), "Steps of adams2 between two kept states."] = 3
        cache: Annotated[str | None, "Where they are kept; beside the teacher by default."] = None

    @classmethod
    def build(cls, config: RunConfig, pipeline: Pipeline) -> "TrajectoryDistillation":
        check_drawn_in_few_steps(config)
        settings = config.objective
        w, n = settings.guidance, settings.steps
        scale = max(w, 1 + MORE * (w - 1))
        own = student_times(config, pipeline, n)
        kept, between = max(KEPT, n), settings.solver_steps
        times = student_times(config, pipeline, kept)
        if times[:: kept // n] != own:  # a schedule whose grids do not nest
            times, between = own, between * kept // n
        return cls(config, pipeline, Recipe(times, between, scale, scale), w)

    @classmethod
    def needs_data(cls, config: RunConfig) -> bool:
        return False

    @classmethod
    def cost(cls, config: RunConfig) -> Cost:
        """The student's own steps before the one that it learns."""
        return Cost(passes=(config.objective.steps - 1) / 2, teachers=1)

    def draw(self, batch: Batch, generator: torch.Generator) -> Steps:
        assert isinstance(batch, Trajectories)
        steps, device = self.config.objective.steps, generator.device
        first = torch.randint(steps, (), generator=generator, device=device)
        return Steps(batch, (first + torch.arange(len(batch), device=device)) % steps)

    def prepare(self, example: Steps, alike: bool = False) -> Inputs:
        batch, step = example.batch, example.step
        text = self.pipeline.text.read(batch.captions, room=len(batch) if alike else 0)
        every = (batch.images.shape[1] - 1) // self.config.objective.steps  # kept states in a step
        states, t = batch.images[:, ::every], batch.t[:, ::every]
        rows = torch.arange(len(batch), device=t.device)
        x = self._rolled_out(states[:, 0], t, step, text)
        return Inputs(x, t[rows, step], t[rows, step + 1], states[rows, step + 1], text)

    @torch.no_grad()
    def _rolled_out(self, x: Tensor, t: Tensor, step: Tensor, text: TextInput) -> Tensor:
        """Where the student is at the start of each image's step."""
        cond = self.pipeline.embed_text(text, self.config.train.precision)
        x = x.clone()
        for i in range(self.config.objective.steps - 1):
            rows = (step > i).nonzero().flatten()
            v = self.pipeline.velocity(
                x[rows], t[rows, i], cond[rows], precision=self.config.train.precision
            )
            x[rows] -= beside(t[rows, i] - t[rows, i + 1], v) * v
        return x

    def losses(self, inputs: Inputs) -> Losses:
        precision = self.config.train.precision
        cond = self.pipeline.embed_text(inputs.text, precision)
        v = self.pipeline.velocity(inputs.x, inputs.t, cond, precision=precision)
        target = (inputs.x - inputs.y_next) / beside(inputs.t - inputs.t_next, v)
        return Losses((v - target).abs().flatten(1).mean(1), inputs.t)
