"""The network captured as CUDA graphs, for drawing with small networks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fluxsmith.autoencoder.conditioning import ImageCondition
from fluxsmith.device import for_each
from fluxsmith.kernels.cuda_graphs import CudaCapture, Graphed
from fluxsmith.pipeline import Pipeline
from fluxsmith.text.encoder import TextEmbedding


@dataclass(frozen=True)
class Point:
    """Where a velocity is asked for."""

    x: Tensor  # (b, c, h, w)
    t: Tensor  # (b,)
    cond: TextEmbedding
    guidance: Tensor | None  # (b,), of networks with a guidance input
    image_cond: ImageCondition | None


class GraphedVelocity:
    """`Pipeline.velocity` of one precision, replayed from CUDA graphs where no gradient is asked
    for."""

    def __init__(self, pipeline: Pipeline, precision: str, capture: CudaCapture) -> None:
        self._pipeline = pipeline
        self._precision = precision
        option = "--cuda-graphs"
        self._graphed = Graphed(self._at, self._warm_up, pipeline.network, capture, option)

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        cond: TextEmbedding,
        guidance: float | Tensor = 1.0,
        image_cond: ImageCondition | None = None,
    ) -> Tensor:
        embeds = self._pipeline.config.model.guidance_embed
        if torch.is_grad_enabled() or not (embeds or guidance == 1.0):  # which it refuses
            return self._pipeline.velocity(x, t, cond, guidance, self._precision, image_cond)
        scales = for_each(guidance, len(x), x.device) if embeds else None
        point = Point(x, for_each(t, len(x), x.device), cond, scales, image_cond)
        v: Tensor = self._graphed(point)
        return v.clone()  # the next replay overwrites it

    def _at(self, point: Point) -> Tensor:
        guidance = 1.0 if point.guidance is None else point.guidance
        return self._pipeline.velocity(
            point.x, point.t, point.cond, guidance, self._precision, point.image_cond
        )

    def _warm_up(self, point: Point) -> object:
        self._at(point)
        # The graph reads these tables, which the cache may drop: so they are kept with it.
        return list(self._pipeline.network.rotary.tables.values())
