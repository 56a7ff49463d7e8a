"""Batches from a data set in memory, each a pure function of the step.

The stream of images is one permutation after another, each addressed by (seed, epoch): every image
comes once an epoch, and a resumed run needs nothing but its step to go on where it was.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fluxsmith.data.captions import CaptionDraw
from fluxsmith.data.images import to_unit
from fluxsmith.data.imageset import ImageSet
from fluxsmith.device import to_device
from fluxsmith.randomness import generator


@dataclass(frozen=True)
class Batch:
    images: Tensor  # (b, c, h, w) float32 in [-1, 1], on the training device
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def split(self, parts: int) -> "list[Batch]":
        """Equal pieces, in order."""
        size = len(self) // parts
        return [
            Batch(self.images[i : i + size], self.captions[i : i + size])
            for i in range(0, len(self), size)
        ]


class MemoryLoader:
    """Holds the images once, as uint8 on the training device, and gathers batches there."""

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        seed: int,
        *,
        caption_dropout: float = 0.0,
        flip: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.data = data
        self.images = data.images.to(device)
        self.batch_size = batch_size
        self.seed = seed
        self.caption_dropout = caption_dropout
        self.flip = flip
        self._labels = data.labels.tolist()
        # The epoch at hand and, where a batch straddles two, the one before.
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._captions = lru_cache(maxsize=2)(self._draw_captions)

    def batch(self, step: int) -> Batch:
        """The batch of optimiser step `step`, counted from 0."""
        n, first = len(self.data), step * self.batch_size
        indices, captions = [], []
        for position in range(first, first + self.batch_size):
            epoch, offset = divmod(position, n)
            index = self._order(epoch)[offset]
            ways = self.data.captions[self._labels[index]]
            indices.append(index)
            captions.append(self._captions(epoch)(index, ways))
        images = self.images[to_device(torch.tensor(indices), self.images.device)]
        if self.flip:
            images = self._flipped(images, step)
        return Batch(to_unit(images), captions)

    def position(self, step: int) -> dict[str, int]:
        """Where the stream stands before `step`: the epoch and the images of it already seen."""
        epoch, offset = divmod(step * self.batch_size, len(self.data))
        return {"epoch": epoch, "offset": offset, "images": len(self.data)}

    def _draw_order(self, epoch: int) -> list[int]:
        order = generator(self.seed, "order", epoch)
        return torch.randperm(len(self.data), generator=order).tolist()

    def _draw_captions(self, epoch: int) -> CaptionDraw:
        return CaptionDraw(len(self.data), self.seed, epoch, self.caption_dropout)

    def _flipped(self, images: Tensor, step: int) -> Tensor:
        coins = torch.rand(len(images), generator=generator(self.seed, "flip", step)) < 0.5
        return torch.where(
            to_device(coins, images.device)[:, None, None, None], images.flip(-1), images
        )
