"""A pipeline's velocity by CUDA graphs, for drawing with small networks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fluxsmith.compiling import is_compiled
from fluxsmith.device import for_each
from fluxsmith.graphs import Capture, Graphed
from fluxsmith.text.encoder import TextEmbedding

if TYPE_CHECKING:
    from fluxsmith.pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Point:
    """Where a velocity is asked for."""

    x: Tensor  # (b, c, h, w)
    t: Tensor  # (b,)
    cond: TextEmbedding
    guidance: Tensor | None  # (b,), of networks with a guidance input


class GraphedVelocity:
    """`Pipeline.velocity`: by graphs where no gradient is asked for."""

    def __init__(self, pipeline: "Pipeline", capture: Capture) -> None:
        self._pipeline = pipeline
        self._graphed = self._build(capture)

    def __call__(
        self, x: Tensor, t: Tensor, cond: TextEmbedding, guidance: float | Tensor = 1.0
    ) -> Tensor:
        embeds = self._pipeline.config.model.guidance_embed
        if torch.is_grad_enabled() or not (embeds or guidance == 1.0):  # which it refuses
            return self._pipeline.velocity(x, t, cond, guidance)
        scales = for_each(guidance, len(x), x.device) if embeds else None
        point = Point(x, for_each(t, len(x), x.device), cond, scales)
        return self._graphed(point).clone()  # the next one overwrites it

    def _build(self, capture: Capture) -> Graphed[Point, Tensor]:
        pipeline = self._pipeline

        def velocity(point: Point) -> Tensor:
            guidance = 1.0 if point.guidance is None else point.guidance
            return pipeline.velocity(point.x, point.t, point.cond, guidance)

        def warm_up(point: Point) -> object:
            velocity(point)
            return pipeline.network.rotary.tables()  # which it may forget

        def mode() -> tuple[str, bool, bool]:
            return pipeline.precision, pipeline.training, is_compiled(pipeline.network)

        return Graphed(velocity, warm_up, pipeline.network, mode, capture, "--cuda-graphs")
