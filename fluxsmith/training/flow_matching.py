"""The rectified-flow objective: the squared error of the velocity at a random time."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fluxsmith.autoencoder.conditioning import ImageCondition
from fluxsmith.config import RunConfig
from fluxsmith.data.loader import Batch
from fluxsmith.errors import UserError
from fluxsmith.flow.path import Velocity, flow_matching_loss
from fluxsmith.flow.timesteps import Density, sample
from fluxsmith.pipeline import Pipeline
from fluxsmith.text.encoder import TextInput
from fluxsmith.training.latent_encoding import keeps_latents
from fluxsmith.training.objective import Cost, Losses, Objective


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
    image_cond: ImageCondition | None = None


class FlowMatching(Objective):
    """The loss of a pipeline's velocity (Esser et al. 2024, eq. 13 and sec. 3.1)."""

    of_velocity = True
    conditioning: ClassVar[str] = "text"  # the model.conditioning that it trains

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
        kind, conditioning = config.objective.kind, config.model.conditioning
        if conditioning != cls.conditioning:
            raise UserError(
                f"model.conditioning={conditioning}: objective.kind={kind} trains models of "
                f"{cls.conditioning}; set one to fit the other"
            )
        if cls.needs_pixels and keeps_latents(config):
            raise UserError(
                f"autoencoder.cache: objective.kind={kind} needs the pictures themselves; set "
                f"autoencoder.cache=none"
            )
        flow = config.flow
        return cls(pipeline, flow.choice, flow.stratified, config.train.precision)

    @classmethod
    def cost(cls, config: RunConfig) -> Cost:
        return Cost()

    def draw(self, batch: Batch, generator: torch.Generator) -> Any:
        t = sample(self.density, len(batch), generator, self.stratified)
        shape = (len(batch), *self.pipeline.shape_of(batch))
        eps = torch.randn(shape, generator=generator, device=generator.device)
        return NoisyBatch(batch, t, eps)

    def prepare(self, example: Any, alike: bool = False) -> Inputs:
        batch: Batch = example.batch
        x0 = self.pipeline.encode(batch)
        text = self.pipeline.text.read(batch.captions, room=len(batch) if alike else 0)
        return Inputs(x0, example.eps, example.t, text)

    def losses(self, inputs: Inputs) -> Losses:
        velocity = self.velocity(inputs)
        loss = flow_matching_loss(velocity, inputs.x0, inputs.eps, inputs.t)
        return Losses(loss, inputs.t)

    def velocity(self, inputs: Inputs) -> Velocity:
        """The pipeline's, for the text and the pictures of the inputs."""
        cond = self.pipeline.embed_text(inputs.text, self.precision)
        return partial(
            self.pipeline.velocity,
            cond=cond,
            precision=self.precision,
            image_cond=inputs.image_cond,
        )
