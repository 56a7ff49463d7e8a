"""Masked training: the network sees each picture around a hole, and the hole itself, and learns the
velocity of the whole picture. It is what FLUX.1 Fill does."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fluxsmith.data.loader import Batch
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

    def draw(self, batch: Batch, generator: torch.Generator) -> Any:
        noisy = super().draw(batch, generator)
        height, width = batch.images.shape[2:]
        return MaskedBatch(noisy, random_masks(len(batch), height, width, generator))

    def prepare(self, example: MaskedBatch, alike: bool = False) -> Inputs:
        inputs = super().prepare(example.noisy, alike)
        images = example.noisy.batch.images
        return replace(inputs, image_cond=self.pipeline.image_condition(images, example.mask))
