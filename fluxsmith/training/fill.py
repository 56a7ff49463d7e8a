"""Masked training: the network sees each picture around a hole, and the hole itself, and learns the
velocity of the whole picture. It is what FLUX.1 Fill does."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.data.loader import Batch
from fluxsmith.errors import UserError
from fluxsmith.pipeline import Pipeline
from fluxsmith.sampling.masks import random_masks
from fluxsmith.training.flow_matching import FlowMatching, Inputs, NoisyBatch


@dataclass(frozen=True)
class MaskedBatch:
    """Images with noise, times and a hole each."""

    noisy: NoisyBatch
    mask: Tensor  # (b, 1, H, W), 1 in the hole

    def split(self, parts: int) -> "list[MaskedBatch]":
        """Equal parts, in order."""
        masks = self.mask.chunk(parts)
        return [MaskedBatch(*piece) for piece in zip(self.noisy.split(parts), masks, strict=True)]


class Fill(FlowMatching):
    """Flow matching with a random hole in every picture."""

    conditioning = "fill"
    needs_pixels = True

    @classmethod
    def build(cls, config: RunConfig, pipeline: Pipeline) -> FlowMatching:
        first, noisy = pipeline.network.img_in, pipeline.network.params.out_channels
        trained = any(parameter.requires_grad for parameter in first.parameters())
        if pipeline.base and not trained and not first.weight[:, noisy:].any():
            raise UserError(
                "train.adapter.targets: train.init_from is a model of text alone, and the layer "
                "that sees the picture around a hole is one of the embedders; name embedders "
                "beside the others, or all"
            )
        return super().build(config, pipeline)

    def draw(self, batch: Batch, generator: torch.Generator) -> Any:
        noisy = super().draw(batch, generator)
        height, width = batch.images.shape[2:]
        return MaskedBatch(noisy, random_masks(len(batch), height, width, generator))

    def prepare(self, example: MaskedBatch, alike: bool = False) -> Inputs:
        inputs = super().prepare(example.noisy, alike)
        images = example.noisy.batch.images
        return replace(inputs, image_cond=self.pipeline.image_condition(images, example.mask))
