"""What training minimises: a batch's random part is drawn first, so that a batch cut into pieces
meets the same noise and timesteps as one that is not. Then comes what the host has to do, and last
what the device does alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fluxsmith.data.loader import Batch
from fluxsmith.flow.path import flow_matching_loss
from fluxsmith.flow.timesteps import Density, sample
from fluxsmith.pipeline import Pipeline
from fluxsmith.text.encoder import TextInput


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
class Inputs:
    """An example as the losses are computed from it: tensors on the device."""

    x0: Tensor  # (b, c, h, w)
    eps: Tensor
    t: Tensor  # (b,)
    text: TextInput


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

    def prepare(self, example: Example, alike: bool = False) -> Inputs:
        """What needs the host: images encoded, text read. Draws nothing, and has no gradient.

        With `alike`, examples of as many images and as long texts give tensors of equal shapes.
        """
        ...

    def losses(self, inputs: Inputs) -> Losses:
        """The losses, differentiable, without a look at any number on the device."""
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

    def prepare(self, example: Example, alike: bool = False) -> Inputs:
        batch = example.batch
        x0 = self.pipeline.autoencoder.encode(batch.images)
        text = self.pipeline.text.read(batch.captions, room=len(batch) if alike else 0)
        return Inputs(x0, example.eps, example.t, text)

    def losses(self, inputs: Inputs) -> Losses:
        cond = self.pipeline.embed_text(inputs.text)

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            return self.pipeline.velocity(x_t, t, cond)

        loss = flow_matching_loss(velocity, inputs.x0, inputs.eps, inputs.t)
        return Losses(loss, inputs.t)
