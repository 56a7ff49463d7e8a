"""Batches from pictures that are decoded on their way to the model, for sets too large for memory.

The same images in the same order with the same captions as from memory, each batch a pure function
of its step; threads decode the next ones ahead.
"""

from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch

from fluxsmith.data.decoding import Decoded, Workers, decode_record
from fluxsmith.data.images import to_unit
from fluxsmith.data.imageset import distinct
from fluxsmith.data.loader import Batch, Epochs, flipped
from fluxsmith.data.records import Records, Tally
from fluxsmith.data.settings import DataSettings
from fluxsmith.device import to_device
from fluxsmith.errors import UserError
from fluxsmith.randomness import generator

AHEAD = 2  # batches
TRIES = 20  # images looked at in place of one that can't be used

Place = tuple[int, int]  # (epoch, image)


class RecordLoader:
    """A picture that can't be used is replaced by another, by an address of its own."""

    def __init__(
        self,
        records: Records,
        batch_size: int,
        seed: int,
        settings: DataSettings,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.records = records
        self.batch_size = batch_size
        self.seed = seed
        self.settings = settings
        self.device = torch.device(device)
        self._epochs = Epochs(len(records), seed, settings.caption_dropout)
        self._tally = Tally(settings.max_bad, len(records))
        self._workers = Workers(settings.workers)
        self._begun: deque[tuple[int, list[tuple[int, Future[tuple[int, Decoded]]]]]] = deque()

    def batch(self, step: int) -> Batch:
        if self._begun and self._begun[0][0] != step:
            self._forget()
        while len(self._begun) <= AHEAD:
            self._begin(step + len(self._begun))
        _, futures = self._begun.popleft()
        pixels, captions = [], []
        for epoch, future in futures:
            index, decoded = future.result()
            self._tally.count(decoded.bad)
            if decoded.pixels is None:
                raise UserError(
                    f"no image that can be used among {TRIES}, the last of them "
                    f"{decoded.record.name}: {decoded.bad[-1][1]}; mend or remove the bad ones"
                )
            pixels.append(decoded.pixels)
            captions.append(self._epochs.caption(epoch, index, decoded.record.captions))
        images = to_device(torch.stack(pixels), self.device)
        if self.settings.flip:
            images = flipped(images, self.seed, step)
        return Batch(to_unit(images), captions)

    def position(self, step: int) -> dict[str, Any]:
        return self._epochs.position(step * self.batch_size)

    def resume(self, position: dict[str, Any], step: int, origin: str) -> None:
        self._epochs.check(position, origin)

    def captions(self) -> list[str]:
        return distinct(self.records.captions())

    def describe(self) -> str:
        return f"{len(self.records):,} images, read as they are needed"

    def _begin(self, step: int) -> None:
        """Has the pictures of a step decoded."""
        futures = []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            place = self._epochs.at(position)
            futures.append((place[0], self._workers.submit(partial(self._decode, place))))
        self._begun.append((step, futures))

    def _forget(self) -> None:
        for _, futures in self._begun:
            for _, future in futures:
                future.cancel()
        self._begun.clear()

    def _decode(self, place: Place) -> tuple[int, Decoded]:
        """The image of a place, or the first usable one of those that stand in for it."""
        epoch, index = place
        bad: tuple[tuple[str, str], ...] = ()
        for attempt in range(TRIES):
            chosen = index if attempt == 0 else self._instead(place, attempt)
            cut = self._cut(epoch, chosen)
            decoded = decode_record(self.records[chosen], self.settings, cut)
            bad += decoded.bad
            if decoded.pixels is not None:
                break
        return chosen, Decoded(decoded.record, decoded.pixels, bad)

    def _instead(self, place: Place, attempt: int) -> int:
        draw = generator(self.seed, "instead", *place, attempt)
        return int(torch.randint(len(self.records), (), generator=draw))

    def _cut(self, epoch: int, index: int) -> float:
        if self.settings.resize != "random-crop":
            return 0.5
        return float(torch.rand((), generator=generator(self.seed, "crop", epoch, index)))
