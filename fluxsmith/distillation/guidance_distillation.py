"""Guidance distillation: the scale becomes an input, so that a step costs one evaluation, as in
FLUX.1 dev."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.data.loader import Batch
from fluxsmith.distillation.distillation import student_times
from fluxsmith.distillation.trajectories import Recipe
from fluxsmith.distillation.trajectory_objective import TrajectoryObjective
from fluxsmith.errors import UserError
from fluxsmith.flow.path import interpolate
from fluxsmith.flow.timesteps import sample
from fluxsmith.pipeline import Pipeline
from fluxsmith.text.encoder import NULL_PROMPT, TextInput
from fluxsmith.training.objective import Cost, Losses

STATES, BETWEEN = 10, 2  # kept of a trajectory, and the solver's steps between them
UNGUIDED = 0.25  # share of the states with a scale of 1
NO_PROMPT = 0.1  # share of the trajectories


@dataclass(frozen=True)
class GuidedStates:
    """States on the way from noise to data, and the scales at which they are learned."""

    x_t: Tensor  # (b, c, h, w)
    t: Tensor  # (b,)
    scale: Tensor  # (b,)
    captions: list[str]

    def split(self, parts: int) -> "list[GuidedStates]":
        size = len(self.captions) // parts
        return [
            GuidedStates(
                self.x_t[i : i + size],
                self.t[i : i + size],
                self.scale[i : i + size],
                self.captions[i : i + size],
            )
            for i in range(0, len(self.captions), size)
        ]


@dataclass(frozen=True)
class Inputs:
    """The same as the losses are computed from it: tensors on the device."""

    x_t: Tensor  # (b, c, h, w)
    t: Tensor  # (b,)
    scale: Tensor  # (b,)
    target: Tensor  # (b, c, h, w), the teacher's guided velocity
    text: TextInput


class GuidanceDistillation(TrajectoryObjective):
    """The squared error to the guided velocity of a frozen teacher (Meng et al. 2023, eq. 6 and
    algorithm 1), at noised data and at states of the teacher's own guided trajectories, which are
    what sampling meets."""

    @dataclass(frozen=True)
    class Settings:
        teacher: Annotated[str, "The run or checkpoint that is learned from."]
        lowest_guidance: Annotated[float, Ge(1), "Smallest scale that is learned."] = 1.0
        highest_guidance: Annotated[float, Ge(1), "Largest scale that is learned."] = 5.0
        noised_data: Annotated[
            float,
            Interval(ge=0, le=1),
            "Share of the states that are noised data; 0 needs no data.",
        ] = 0.5
        trajectories: Annotated[int, Ge(1), "Trajectories of the teacher that are made."] = 512
        cache: Annotated[str | None, "Where they are kept; beside the teacher by default."] = None

        def __post_init__(self) -> None:
            if self.highest_guidance < self.lowest_guidance:
                raise ValueError(
                    f"highest_guidance={self.highest_guidance}: is below "
                    f"objective.lowest_guidance={self.lowest_guidance}; swap them"
                )

    @classmethod
    def build(cls, config: RunConfig, pipeline: Pipeline) -> "GuidanceDistillation":
        if not config.model.guidance_embed:
            raise UserError(
                "model.guidance_embed=false: a student of guidance takes the scale as an input; "
                "set model.guidance_embed=true"
            )
        if (method := config.sample.guidance_method) != "embedded":
            raise UserError(
                f"sample.guidance_method={method}: a student of guidance takes the scale as an "
                f"input; set sample.guidance_method=embedded"
            )
        embedder = pipeline.network.guidance_in
        assert embedder is not None
        learned = any(parameter.requires_grad for parameter in embedder.parameters())
        if pipeline.base and not learned and not embedder.out_layer.weight.any():
            raise UserError(
                "train.adapter.targets: the guidance input begins at zero and is one of the "
                "embedders, so these must be trained too; name embedders beside the others, or all"
            )
        if cls.needs_data(config) and config.data.buckets != "off":
            raise UserError(
                f"data.buckets={config.data.buckets}: the teacher's trajectories are square, so "
                f"the data must be; set data.buckets=off, or objective.noised_data=0"
            )
        low, high = config.objective.lowest_guidance, config.objective.highest_guidance
        if (scale := config.sample.guidance) != 1 and not low <= scale <= high:
            raise UserError(
                f"sample.guidance={scale}: this student learns scales of 1 and of {low} to {high}; "
                f"set it to one of these, or widen objective.lowest_guidance or highest_guidance"
            )
        times = student_times(config, pipeline, STATES)
        return cls(config, pipeline, Recipe(times, BETWEEN, low, high, UNGUIDED, NO_PROMPT, True))

    @classmethod
    def needs_data(cls, config: RunConfig) -> bool:
        return config.objective.noised_data > 0

    @classmethod
    def cost(cls, config: RunConfig) -> Cost:
        """The teacher's, one where the scale is 1 and two elsewhere."""
        return Cost(passes=1 + (1 - UNGUIDED) * (1 - NO_PROMPT), teachers=1)

    def draw(self, batch: Batch, generator: torch.Generator) -> GuidedStates:
        """The first part of a batch is noised data, the rest states of trajectories."""
        share = self.config.objective.noised_data * len(batch)
        noised = int(share)
        if share > noised:  # one more by chance, so that the share holds on average
            noised = int(share + _uniform(1, generator).item())
        parts = []
        if noised < len(batch):
            parts.append(self._on_trajectories(len(batch) - noised, generator))
        if noised:
            parts.insert(0, self._noised(batch, noised, generator))
        return GuidedStates(
            torch.cat([part.x_t for part in parts]),
            torch.cat([part.t for part in parts]),
            torch.cat([part.scale for part in parts]),
            [caption for part in parts for caption in part.captions],
        )

    def _on_trajectories(self, n: int, generator: torch.Generator) -> GuidedStates:
        paths = self.store.rows((_uniform(n, generator) * self.store.count).long().tolist())
        at = (_uniform(n, generator) * len(self.store.grid)).long()
        rows = torch.arange(n, device=at.device)
        return GuidedStates(paths.images[rows, at], paths.t[rows, at], paths.scale, paths.captions)

    def _noised(self, batch: Batch, n: int, generator: torch.Generator) -> GuidedStates:
        """Of the first n images."""
        t = sample(self.config.flow.choice, n, generator, self.config.flow.stratified)
        shape = (n, *self.pipeline.shape_of(batch))
        eps = torch.randn(shape, generator=generator, device=generator.device)
        low, high = self.store.recipe.lowest_scale, self.store.recipe.highest_scale
        own = low + (high - low) * _uniform(n, generator)
        captions = batch.captions[:n]
        nothing = torch.tensor([c == NULL_PROMPT for c in captions], device=own.device)
        own = torch.where(nothing | (_uniform(n, generator) < UNGUIDED), 1.0, own)
        data = Batch(batch.images[:n], captions, batch.encoded)
        return GuidedStates(interpolate(self.pipeline.encode(data), eps, t), t, own, captions)

    def prepare(self, example: GuidedStates, alike: bool = False) -> Inputs:
        x_t, t, scale, captions = example.x_t, example.t, example.scale, example.captions
        target = self.teacher.velocity(x_t, t, captions, scale)
        text = self.pipeline.text.read(captions, room=len(captions) if alike else 0)
        return Inputs(x_t, t, scale, target, text)

    def losses(self, inputs: Inputs) -> Losses:
        precision = self.config.train.precision
        cond = self.pipeline.embed_text(inputs.text, precision)
        v = self.pipeline.velocity(inputs.x_t, inputs.t, cond, inputs.scale, precision)
        return Losses((v - inputs.target).square().flatten(1).mean(1), inputs.t)


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device)
