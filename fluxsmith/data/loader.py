"""Batches of training images: what the trainer asks of any loader, and the loaders whose batches
are a pure function of the step, from images in memory or decoded on the way.

Their images come in one permutation after another, each addressed by (seed, epoch): every image
comes once an epoch, and a resumed run needs nothing but its step to go on where it was.
"""

from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fluxsmith.data.images import to_unit
from fluxsmith.data.imageset import ImageSet, distinct
from fluxsmith.data.pictures import Decoded, decode_record
from fluxsmith.data.records import DataSettings, ReadingSettings, Records, Tally
from fluxsmith.device import to_device
from fluxsmith.errors import UserError
from fluxsmith.randomness import generator

AHEAD = 2  # batches that are decoded before they are asked for
TRIES = 20  # images that are tried in place of one that can't be used

Place = tuple[int, int]  # (epoch, image)


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


class EpochLoader(ABC):
    """Which of `n` images comes when, epoch after epoch, and with which caption."""

    def __init__(self, n: int, batch_size: int, seed: int, settings: DataSettings) -> None:
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self.caption_dropout = settings.caption_dropout
        self.flip = settings.flip
        # The epoch at hand and, where a batch straddles two, the one before.
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._captions = lru_cache(maxsize=2)(self._draw_captions)

    @abstractmethod
    def read(self, step: int) -> tuple[Tensor, list[str]]:
        """The images of a step, (b, c, h, w) uint8 on the training device, and their captions."""

    def batch(self, step: int) -> Batch:
        images, captions = self.read(step)
        if self.flip:  # half of them, left to right
            coins = torch.rand(len(images), generator=generator(self.seed, "flip", step)) < 0.5
            mirrored = to_device(coins, images.device)[:, None, None, None]
            images = torch.where(mirrored, images.flip(-1), images)
        return Batch(to_unit(images), captions)

    def places(self, step: int) -> list[Place]:
        """(epoch, image) of each row of a batch."""
        first = step * self.batch_size
        found = (divmod(position, self.n) for position in range(first, first + self.batch_size))
        return [(epoch, int(self._order(epoch)[offset])) for epoch, offset in found]

    def caption(self, place: Place, ways: tuple[str, ...]) -> str:
        """One of the image's captions, each equally likely; the empty prompt where it's dropped."""
        epoch, image = place
        which, dropped = self._captions(epoch)
        return "" if dropped[image] else ways[int(which[image] * len(ways))]

    def position(self, step: int) -> dict[str, Any]:
        """The epoch and the images of it already seen."""
        epoch, offset = divmod(step * self.batch_size, self.n)
        return {"epoch": epoch, "offset": offset, "images": self.n}

    def resume(self, position: dict[str, Any], step: int, origin: str) -> None:
        images = position.get("images")
        if images != self.n:
            then = "a stream" if images is None else f"{images} images"
            raise UserError(
                f"{origin} was trained on {then}, and there are {self.n} images now; a resumed run "
                f"needs the same data"
            )

    def _draw_order(self, epoch: int) -> np.ndarray:
        return torch.randperm(self.n, generator=generator(self.seed, "order", epoch)).numpy()

    def _draw_captions(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """For each image which of its captions it gets, in [0, 1), and whether that is dropped.
        As numpy, which takes a number out of an array in a tenth of the time."""
        draw = generator(self.seed, "caption", epoch)
        which, dropped = torch.rand(2, self.n, generator=draw, dtype=torch.float64)
        return which.numpy(), (dropped < self.caption_dropout).numpy()


class MemoryLoader(EpochLoader):
    """Holds the images once, as uint8 on the training device, and gathers batches there."""

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        seed: int,
        settings: DataSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(len(data), batch_size, seed, settings)
        self.data = data
        self.images = data.images.to(device)
        self._labels = data.labels.tolist()

    def read(self, step: int) -> tuple[Tensor, list[str]]:
        places = self.places(step)
        rows = to_device(torch.tensor([image for _, image in places]), self.images.device)
        ways = self.data.captions
        return self.images[rows], [self.caption(p, ways[self._labels[p[1]]]) for p in places]

    def captions(self) -> list[str]:
        return self.data.distinct_captions()

    def describe(self) -> str:
        return f"{self.n:,} images"


class RecordLoader(EpochLoader):
    """The same images in the same order with the same captions as from memory, decoded on the way
    for sets that are too large for it. A picture that can't be used is replaced by another, drawn
    at random from an address."""

    def __init__(
        self,
        records: Records,
        batch_size: int,
        seed: int,
        settings: ReadingSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(len(records), batch_size, seed, settings)
        self.records = records
        self.settings = settings
        self.device = torch.device(device)
        self._tally = Tally(settings.max_bad, len(records))
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="fluxsmith-data")
        self._begun: deque[tuple[int, list[Future[tuple[Place, Decoded]]]]] = deque()

    def read(self, step: int) -> tuple[Tensor, list[str]]:
        if self._begun and self._begun[0][0] != step:
            self._begun.clear()
        while len(self._begun) <= AHEAD:
            ahead = step + len(self._begun)
            futures = [self._pool.submit(self._decode, place) for place in self.places(ahead)]
            self._begun.append((ahead, futures))
        pixels, captions = [], []
        for future in self._begun.popleft()[1]:
            place, decoded = future.result()
            self._tally.count(decoded.bad)
            if decoded.pixels is None:
                raise UserError(
                    f"no image that can be used among {TRIES}, the last of them "
                    f"{decoded.record.name}: {decoded.bad[-1][1]}; mend or remove the bad ones"
                )
            pixels.append(decoded.pixels)
            captions.append(self.caption(place, decoded.record.captions))
        return to_device(torch.stack(pixels), self.device), captions

    def captions(self) -> list[str]:
        return distinct(self.records.captions())

    def describe(self) -> str:
        return f"{self.n:,} images, read as they are needed"

    def _decode(self, place: Place) -> tuple[Place, Decoded]:
        """The image of a place, or the first one that can be used of those that stand in for it."""
        epoch, image = place
        bad: tuple[tuple[str, str], ...] = ()
        for attempt in range(1, TRIES + 1):
            cut = self._cut(epoch, image)
            decoded = decode_record(self.records[image], self.settings, cut)
            bad += decoded.bad
            if decoded.pixels is not None or attempt == TRIES:
                break
            draw = generator(self.seed, "instead", *place, attempt)
            image = int(torch.randint(self.n, (), generator=draw))
        return (epoch, image), Decoded(decoded.record, decoded.pixels, bad)

    def _cut(self, epoch: int, image: int) -> float:
        if self.settings.resize != "random-crop":
            return 0.5
        return float(torch.rand((), generator=generator(self.seed, "crop", epoch, image)))
