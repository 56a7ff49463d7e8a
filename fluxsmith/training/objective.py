"""What training minimises: a batch's random part is drawn first, so that a batch cut into pieces
meets the same noise and timesteps as one that is not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fluxsmith.data.loader import Batch
from fluxsmith.flow.path import flow_matching_loss
from fluxsmith.flow.timesteps import Density, sample
from fluxsmith.pipeline import Pipeline


@dataclass(frozen=True)
class Example:
    """A batch with everything random that the objective needs."""

    batch: Batch
    t: Tensor  # (b,)
    eps: Tensor  # (b, c, h, w)

    def split(self, parts: int) -> "list[Example]":
        """Equal pieces, in order."""
        size = len(self.batch) // parts
        pieces = zip(self.batch.split(parts), self.t.split(size), self.eps.split(size), strict=True)
        return [Example(*piece) for piece in pieces]


@dataclass(frozen=True)
class Losses:
    """The loss of each image and the time it was taken at, (b,) each."""

    values: Tensor
    t: Tensor

    def detached(self) -> "Losses":
        return Losses(self.values.detach(), self.t)

    @staticmethod
    def joined(parts: "Sequence[Losses]") -> "Losses":
        """The losses of a batch from those of its pieces."""
        return Losses(torch.cat([p.values for p in parts]), torch.cat([p.t for p in parts]))


class Objective(Protocol):
    def draw(self, batch: Batch, generator: torch.Generator) -> Example:
        """Draws what is random, for the whole batch."""
        ...

    def __call__(self, example: Example) -> Losses:
        """The losses, differentiable; draws nothing."""
        ...


class FlowMatching:
    """The rectified-flow loss of a pipeline's velocity (Esser et al. 2024, eq. 13 and sec. 3.1)."""

    def __init__(self, pipeline: Pipeline, density: Density, stratified: bool) -> None:
        self.pipeline = pipeline
        self.density = density
        self.stratified = stratified

    def draw(self, batch: Batch, generator: torch.Generator) -> Example:
        t = sample(self.density, len(batch), generator, self.stratified)
        shape = (len(batch), *self.pipeline.latent_shape)
        eps = torch.randn(shape, generator=generator, device=generator.device)
        return Example(batch, t, eps)

    def __call__(self, example: Example) -> Losses:
        cond = self.pipeline.encode_text(example.batch.captions)
        x0 = self.pipeline.autoencoder.encode(example.batch.images)

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            return self.pipeline.velocity(x_t, t, cond)

        return Losses(flow_matching_loss(velocity, x0, example.eps, example.t), example.t)
