"""Flow matching with less noise in its targets: the data that a noisy picture leads to is not the
picture that it was made of, but the mean over all that it may have come of, among some of the same
caption (Xu, Tong & Jaakkola 2023, "Stable Target Field for Reduced Variance Score Estimation in
Diffusion Models"). What is learned is the same."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.data.loader import Batch, Loader, MemoryLoader
from fluxsmith.data.peers import Drawn, Peers
from fluxsmith.errors import UserError
from fluxsmith.flow.path import NO_TIME, beside, interpolate, posterior_mean, velocity_target
from fluxsmith.pipeline import Pipeline
from fluxsmith.training.flow_matching import FlowMatching, Inputs, NoisyBatch
from fluxsmith.training.objective import Losses


@dataclass(frozen=True)
class ReferredBatch:
    """Images with noise and times, and others of their captions."""

    noisy: NoisyBatch
    drawn: list[Drawn]  # for the rows of the whole batch
    first: int = 0  # row of the whole batch

    def split(self, parts: int) -> "list[ReferredBatch]":
        """Equal parts, in order."""
        pieces = self.noisy.split(parts)
        size = len(pieces[0].batch)
        return [ReferredBatch(one, self.drawn, i * size) for i, one in enumerate(pieces)]


@dataclass(frozen=True)
class StableInputs(Inputs):
    mean: Tensor = field(kw_only=True)  # (b, c, h, w) of the data that x_t may have come of


class StableTarget(FlowMatching):
    """The squared error of a pipeline's velocity to the mean one among a reference batch."""

    @dataclass(frozen=True)
    class Settings:
        reference_batch: Annotated[
            int, Interval(ge=1, le=2**20), "Pictures of the same caption that targets are means of."
        ] = 500

    peers: Peers | None = None  # None for a plan, which has no data
    reference_batch = 0

    @classmethod
    def build(cls, config: RunConfig, pipeline: Pipeline) -> FlowMatching:
        if config.autoencoder.kind != "pixel":
            raise UserError(
                f"objective.kind=stable_target: is for pixels: autoencoder.kind="
                f"{config.autoencoder.kind} would have to encode so many pictures a step; use "
                f"objective.kind=flow_matching"
            )
        objective = super().build(config, pipeline)
        assert isinstance(objective, cls)
        objective.reference_batch = config.objective.reference_batch
        return objective

    def see(self, loader: Loader) -> None:
        if not isinstance(loader, MemoryLoader):
            raise UserError(
                "objective.kind=stable_target: needs its pictures in memory; set "
                "data.in_memory=true, or objective.kind=flow_matching"
            )
        self.peers = Peers(loader)
        if self.peers.most < 2:
            raise UserError(
                "objective.kind=stable_target: no two pictures share a caption, so there are none "
                "to take means of; use objective.kind=flow_matching"
            )

    def draw(self, batch: Batch, generator: torch.Generator) -> ReferredBatch:
        noisy = super().draw(batch, generator)
        if self.peers is None:
            return ReferredBatch(noisy, [])
        return ReferredBatch(noisy, self.peers.draw(batch, self.reference_batch, generator))

    def prepare(self, example: ReferredBatch, alike: bool = False) -> StableInputs:
        inputs = super().prepare(example.noisy, alike)
        mean = inputs.x0.clone()
        for drawn in example.drawn:
            rows = [row - example.first for row in drawn.rows]
            rows = [row for row in rows if 0 <= row < len(mean)]
            if rows and self.peers is not None:
                others = self.pipeline.encode(self.peers.pictures(drawn))
                x0, eps, t = inputs.x0[rows], inputs.eps[rows], inputs.t[rows]
                mean[rows] = posterior_mean(x0, eps, t, others)
        return StableInputs(**vars(inputs), mean=mean)

    def losses(self, inputs: Any) -> Losses:
        x0, eps, t = inputs.x0, inputs.eps, inputs.t
        v = self.velocity(inputs)(interpolate(x0, eps, t), t).float()
        own = velocity_target(x0, eps)
        stable = own + (x0 - inputs.mean) / beside(t, x0).clamp(min=NO_TIME)
        loss, plain = ((v - target).square().flatten(1).mean(1) for target in (stable, own))
        # The gradient of one with the value of the other, which other runs' records have as well.
        return Losses(loss + (plain - loss).detach(), t)
