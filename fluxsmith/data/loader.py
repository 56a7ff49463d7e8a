"""Batches of training images. What the trainer asks of any loader, and the one over a data set in
memory, whose batches are a pure function of the step.

The stream of images is one permutation after another, each addressed by (seed, epoch): every image
comes once an epoch, and a resumed run needs nothing but its step to go on where it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fluxsmith.data.captions import CaptionDraw
from fluxsmith.data.images import to_unit
from fluxsmith.data.imageset import ImageSet
from fluxsmith.device import to_device
from fluxsmith.errors import UserError
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


class Loader(Protocol):
    def batch(self, step: int) -> Batch:
        """The batch of optimiser step `step`, counted from 0. A stream gives them in order."""
        ...

    def position(self, step: int) -> dict[str, Any]:
        """Where the images stand before `step`, as plain data for the checkpoint."""
        ...

    def resume(self, position: dict[str, Any], step: int, origin: str) -> None:
        """Goes to `step`, where they stood so; a UserError where these are other images."""
        ...

    def captions(self) -> list[str]:
        """Every caption once; of a stream, the first ones."""
        ...

    def describe(self) -> str:
        """How many images, in words."""
        ...


class Epochs:
    """Which image comes when, and with which caption: epoch after epoch of `n` images."""

    def __init__(self, n: int, seed: int, caption_dropout: float) -> None:
        self.n = n
        self.seed = seed
        self.caption_dropout = caption_dropout
        # The epoch at hand and, where a batch straddles two, the one before.
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._captions = lru_cache(maxsize=2)(self._draw_captions)

    def at(self, position: int) -> tuple[int, int]:
        """(epoch, image) at a position of the whole stream."""
        epoch, offset = divmod(position, self.n)
        return epoch, int(self._order(epoch)[offset])

    def caption(self, epoch: int, image: int, ways: Sequence[str]) -> str:
        return self._captions(epoch)(image, ways)

    def position(self, position: int) -> dict[str, Any]:
        """The epoch and the images of it already seen."""
        epoch, offset = divmod(position, self.n)
        return {"epoch": epoch, "offset": offset, "images": self.n}

    def check(self, position: dict[str, Any], origin: str) -> None:
        images = position.get("images")
        if images != self.n:
            then = "a stream" if images is None else f"{images} images"
            raise UserError(
                f"{origin} was trained on {then}, and there are {self.n} images now; a resumed run "
                f"needs the same data"
            )

    def _draw_order(self, epoch: int) -> np.ndarray:
        return torch.randperm(self.n, generator=generator(self.seed, "order", epoch)).numpy()

    def _draw_captions(self, epoch: int) -> CaptionDraw:
        return CaptionDraw(self.n, self.seed, epoch, self.caption_dropout)


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
        self.flip = flip
        self._labels = data.labels.tolist()
        self._epochs = Epochs(len(data), seed, caption_dropout)

    def batch(self, step: int) -> Batch:
        first = step * self.batch_size
        indices, captions = [], []
        for position in range(first, first + self.batch_size):
            epoch, index = self._epochs.at(position)
            ways = self.data.captions[self._labels[index]]
            indices.append(index)
            captions.append(self._epochs.caption(epoch, index, ways))
        images = self.images[to_device(torch.tensor(indices), self.images.device)]
        if self.flip:
            images = flipped(images, self.seed, step)
        return Batch(to_unit(images), captions)

    def position(self, step: int) -> dict[str, Any]:
        return self._epochs.position(step * self.batch_size)

    def resume(self, position: dict[str, Any], step: int, origin: str) -> None:
        self._epochs.check(position, origin)

    def captions(self) -> list[str]:
        return self.data.distinct_captions()

    def describe(self) -> str:
        return f"{len(self.data):,} images"


def flipped(images: Tensor, seed: int, step: int) -> Tensor:
    """Half of the images (b, c, h, w) mirrored, left to right."""
    coins = torch.rand(len(images), generator=generator(seed, "flip", step)) < 0.5
    return torch.where(
        to_device(coins, images.device)[:, None, None, None], images.flip(-1), images
    )
