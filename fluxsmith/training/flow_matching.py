"""The rectified-flow objective: the squared error of the velocity at a random time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.data.loader import Batch
from fluxsmith.flow.path import flow_matching_loss
from fluxsmith.flow.timesteps import Density, sample
from fluxsmith.pipeline import Pipeline
from fluxsmith.text.encoder import TextInput
from fluxsmith.training.objective import Losses, Objective


@dataclass(frozen=True)
class NoisyBatch:
    """Images with the noise and the times at which they are learned."""

    batch: Batch
    t: Tensor  # (b,)
    eps: Tensor  # (b, c, h, w)

    def split(self, parts: int) -> "list[NoisyBatch]":
        """Equal parts, in order."""
        size = len(self.batch) // parts
        pieces = zip(self.batch.split(parts), self.t.split(size), self.eps.split(size), strict=True)
        return [NoisyBatch(*piece) for piece in pieces]


@dataclass(frozen=True)
class Inputs:
    """The same as the losses are computed from it: tensors on the device."""

    x0: Tensor  # (b, c, h, w)
    eps: Tensor
    t: Tensor  # (b,)
    text: TextInput


class FlowMatching(Objective):
    """The loss of a pipeline's velocity (Esser et al. 2024, eq. 13 and sec. 3.1)."""

    of_velocity = True

    def __init__(
        self,
        pipeline: Pipeline,
        density: Density,
        stratified: bool = True,
        precision: str = "float32",
    ) -> None:
        self.pipeline = pipeline
        self.density = density
        self.stratified = stratified
        self.precision = precision  # of the network

    @classmethod
    def build(cls, config: RunConfig, pipeline: Pipeline) -> "FlowMatching":
        flow = config.flow
        return cls(pipeline, flow.choice, flow.stratified, config.train.precision)

    def draw(self, batch: Batch, generator: torch.Generator) -> NoisyBatch:
        t = sample(self.density, len(batch), generator, self.stratified)
        shape = (len(batch), *self.pipeline.shape_of(batch))
        eps = torch.randn(shape, generator=generator, device=generator.device)
        return NoisyBatch(batch, t, eps)

    def prepare(self, example: NoisyBatch, alike: bool = False) -> Inputs:
        batch = example.batch
        x0 = self.pipeline.encode(batch)
        text = self.pipeline.text.read(batch.captions, room=len(batch) if alike else 0)
        return Inputs(x0, example.eps, example.t, text)

    def losses(self, inputs: Inputs) -> Losses:
        cond = self.pipeline.embed_text(inputs.text, self.precision)

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            return self.pipeline.velocity(x_t, t, cond, precision=self.precision)

        loss = flow_matching_loss(velocity, inputs.x0, inputs.eps, inputs.t)
        return Losses(loss, inputs.t)
