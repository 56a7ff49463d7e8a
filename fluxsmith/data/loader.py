"""Batches of training images: what the trainer asks of any loader, and the loaders whose batches
are a pure function of the step, from images in memory or decoded on the way.

Their images come in one permutation after another, each addressed by (seed, epoch), or one of each
bucket: every image comes once an epoch, and a resumed run needs nothing but its step to go on where
it was.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fluxsmith.data.fingerprints import same_data
from fluxsmith.data.images import Shape, to_unit
from fluxsmith.data.imageset import ImageSet, distinct
from fluxsmith.data.pictures import Decode, Decoded, decode_record
from fluxsmith.data.records import DataSettings, ReadingSettings, Records, Tally
from fluxsmith.device import to_device
from fluxsmith.errors import UserError
from fluxsmith.randomness import generator

AHEAD = 2  # batches that are decoded before they are asked for
Rows = Sequence[int] | None  # of a batch; None: all of them
TRIES = 20  # images that are tried in place of one that can't be used
ELSEWHERE = 80  # images of any bucket that are tried after these


class Place(NamedTuple):
    """An image that comes in an epoch."""

    epoch: int
    bucket: int
    row: int  # of the image in its bucket


@dataclass(frozen=True)
class Batch:
    images: Tensor  # (b, c, h, w) float32 in [-1, 1], on the training device; or latents
    captions: list[str]
    encoded: bool = False  # whether they are latents
    references: Tensor | None = None  # (b, c, h, w), of sets of pairs: what their edits begin with

    def __len__(self) -> int:
        return len(self.captions)

    def at(self, rows: Sequence[int] | None) -> "Batch":
        """Some of its rows; itself for None."""
        if rows is None:
            return self
        where = to_device(torch.tensor(rows), self.images.device)
        references = None if self.references is None else self.references[where]
        captions = [self.captions[row] for row in rows]
        return Batch(self.images[where], captions, self.encoded, references)

    def split(self, parts: int) -> "list[Batch]":
        """Equal pieces, in order."""
        size = len(self) // parts
        return [
            Batch(
                self.images[i : i + size],
                self.captions[i : i + size],
                self.encoded,
                None if self.references is None else self.references[i : i + size],
            )
            for i in range(0, len(self), size)
        ]


def mirrored(images: Tensor, which: Tensor) -> Tensor:
    """Some of the images (b, c, h, w) left to right: those where `which` (b,) is true."""
    return torch.where(which[:, None, None, None], images.flip(-1), images)


def batch_of(images: Tensor, captions: list[str], channels: int) -> Batch:
    """Of pixels, which are uint8, or of latents, which are floats. Pixels of more channels than an
    image has are pairs, as in `Decoded`."""
    if images.is_floating_point():
        return Batch(images.float(), captions, encoded=True)
    images, *references = to_unit(images).split(channels, dim=1)
    return Batch(images, captions, references=references[0] if references else None)


class Loader(Protocol):
    digest: str  # of the data, which `build_loader` knows; "" where nobody does

    def batch(self, step: int, rows: Rows = None) -> Batch:
        """The batch of optimiser step `step`, counted from 0, or some of its rows, as one of
        several ranks needs them. A stream gives batches in order."""
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


class Ahead:
    """Decodes rows of batches: those that are asked for, and the same of those that follow."""

    def __init__(
        self, workers: int, jobs: Callable[[int, Sequence[int]], Iterable[Callable[[], Any]]]
    ) -> None:
        """`jobs` are those of some rows of a step's batch."""
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="fluxsmith-data")
        self._jobs = jobs
        self.forget()

    def forget(self) -> None:
        """Drops what was begun."""
        self._begun: dict[tuple[int, int], Future[Any]] = {}
        self._rows: Sequence[int] = ()

    def rows(self, step: int, rows: Sequence[int]) -> list[Any]:
        """The results of these rows."""
        usual = min(rows, self._rows or rows, key=len)  # a whole batch is looked at now and then
        self._rows = rows
        begun: dict[tuple[int, int], Future[Any]] = {}
        for at in range(step, step + AHEAD + 1):
            wanted = rows if at == step else usual
            new = [row for row in wanted if (at, row) not in self._begun]
            self._begun |= {
                (at, row): self._pool.submit(job)
                for row, job in zip(new, self._jobs(at, new) if new else (), strict=True)
            }
            begun |= {(at, row): self._begun[at, row] for row in wanted}
        self._begun = begun
        return [begun[step, row].result() for row in rows]


class BucketOrder:
    """Which images make the batch of a step, where there are `counts[b]` of them in bucket b.

    A bucket's images come in one permutation after another, cut into batches. By the end of epoch e
    (counted from 1) a bucket has given as few batches as hold e permutations: so each image came e
    times by then, and those that fill up its bucket's last batch are early, once more.
    """

    def __init__(self, counts: Sequence[int], batch_size: int, seed: int) -> None:
        self.counts = counts
        self.batch_size = batch_size
        self.seed = seed
        self._turns = lru_cache(maxsize=2)(self._draw_turns)

    def places(self, step: int) -> tuple[int, list[tuple[int, int]]]:
        """The bucket of a step, and (permutation, place in it) of each image in its batch."""
        # batches(e) is at most len(counts) more than e epochs of images fill
        early = (step - len(self.counts)) * self.batch_size // sum(self.counts)
        epoch = max(0, early)
        while self.batches(epoch + 1) <= step:
            epoch += 1
        buckets, turns = self._turns(epoch)
        at = step - self.batches(epoch)
        bucket, first = int(buckets[at]), int(turns[at]) * self.batch_size
        n = self.counts[bucket]
        return bucket, [divmod(place, n) for place in range(first, first + self.batch_size)]

    def batches(self, epochs: int) -> int:
        """The steps of so many epochs."""
        return int(self._given(epochs).sum())

    def _given(self, epochs: int) -> np.ndarray:
        """The batches of each bucket in so many epochs."""
        return -(-epochs * np.asarray(self.counts, dtype=np.int64) // self.batch_size)

    def _draw_turns(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """For each batch of an epoch its bucket, shuffled, and its number among the bucket's."""
        before, after = self._given(epoch), self._given(epoch + 1)
        buckets = np.repeat(np.arange(len(self.counts)), after - before)
        draw = generator(self.seed, "buckets", epoch)
        buckets = buckets[torch.randperm(len(buckets), generator=draw).numpy()]
        turns = np.empty_like(buckets)
        for bucket, first in enumerate(before):
            own = buckets == bucket
            turns[own] = first + np.arange(own.sum())
        return buckets, turns


class EpochLoader(ABC):
    """Which image comes when, epoch after epoch, and with which caption. `counts` says how many
    images are seen in each shape, which is one shape where there are no buckets."""

    def __init__(
        self, counts: Mapping[Shape, int], batch_size: int, seed: int, settings: DataSettings
    ) -> None:
        self.shapes = list(counts)
        self.in_buckets = settings.buckets != "off"
        self.n = sum(counts.values())
        self.batch_size = batch_size
        self.seed = seed
        self.channels = settings.channels
        self.caption_dropout = settings.caption_dropout
        self.flip = settings.flip
        self.digest = ""
        self._rows = BucketOrder(list(counts.values()), batch_size, seed)
        # Of each bucket the epoch at hand and, where a batch straddles two, the one before.
        self._order = lru_cache(maxsize=2 * len(counts))(self._draw_order)
        self._captions = lru_cache(maxsize=2 * len(counts))(self._draw_captions)

    @abstractmethod
    def read(self, step: int, rows: Rows) -> tuple[Tensor, list[str]]:
        """The images of a step, or pairs, (b, c, h, w) uint8 on the training device, or latents,
        and their captions; or those of some rows."""

    def batch(self, step: int, rows: Rows = None) -> Batch:
        images, captions = self.read(step, rows)
        if self.flip:  # half of them, left to right
            draw = generator(self.seed, "flip", step)
            coins = torch.rand(self.batch_size, generator=draw) < 0.5
            coins = coins if rows is None else coins[list(rows)]
            images = mirrored(images, to_device(coins, images.device))
        return batch_of(images, captions, self.channels)

    def places(self, step: int, rows: Rows = None) -> list[Place]:
        """Each row of a batch, or some of them; all are of one bucket."""
        bucket, found = self._rows.places(step)
        found = found if rows is None else [found[row] for row in rows]
        return [Place(e, bucket, int(self._order(bucket, e)[offset])) for e, offset in found]

    def caption(self, place: Place, ways: tuple[str, ...]) -> str:
        """One of the image's captions, each equally likely; the empty prompt where it's dropped."""
        which, dropped = self._captions(place.bucket, place.epoch)
        return "" if dropped[place.row] else ways[int(which[place.row] * len(ways))]

    def position(self, step: int) -> dict[str, Any]:
        """The epoch and the images of it already seen."""
        epoch, offset = divmod(step * self.batch_size, self.n)
        counted: dict[str, Any] = {"buckets": self._counts()} if self.in_buckets else {}
        counted |= {"digest": self.digest} if self.digest else {}
        return {"epoch": epoch, "offset": offset, "images": self.n} | counted

    def resume(self, position: dict[str, Any], step: int, origin: str) -> None:
        same_data(position, self.position(step), origin)
        if self.in_buckets and position["buckets"] != self._counts():
            raise UserError(
                f"{origin} was trained on images of other shapes, which fill the buckets "
                f"differently; a resumed run needs the same data"
            )

    def describe(self) -> str:
        found = f"{self.n:,} images"
        if self.in_buckets:
            early = self._rows.batches(1) * self.batch_size - self.n
            found += (
                f" in {len(self.shapes)} buckets, {early:,} of which come again in the first epoch "
                f"to fill its batches"
            )
        return found

    def _counts(self) -> dict[str, int]:
        """The images of each bucket, by its shape."""
        return {f"{h}x{w}": n for (h, w), n in zip(self.shapes, self._rows.counts, strict=True)}

    def _draw(self, purpose: str, bucket: int, epoch: int) -> torch.Generator:
        height, width = self.shapes[bucket]
        of_bucket = (f"{height}x{width}",) if self.in_buckets else ()
        return generator(self.seed, purpose, epoch, *of_bucket)

    def _draw_order(self, bucket: int, epoch: int) -> np.ndarray:
        n = self._rows.counts[bucket]
        return torch.randperm(n, generator=self._draw("order", bucket, epoch)).numpy()

    def _draw_captions(self, bucket: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """For each image which of its captions it gets, in [0, 1), and whether that is dropped.
        As numpy, which takes a number out of an array in a tenth of the time."""
        n = self._rows.counts[bucket]
        draw = self._draw("caption", bucket, epoch)
        which, dropped = torch.rand(2, n, generator=draw, dtype=torch.float64)
        return which.numpy(), (dropped < self.caption_dropout).numpy()


class MemoryLoader(EpochLoader):
    """Holds the images once, as uint8 on the training device, and gathers batches there. `parts`
    are those of each shape."""

    def __init__(
        self,
        parts: Sequence[ImageSet],
        batch_size: int,
        seed: int,
        settings: DataSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        counts = {part.shape: len(part) for part in parts}
        super().__init__(counts, batch_size, seed, settings)
        self.images = [part.pairs.to(device) for part in parts]
        self.labels = [part.labels.tolist() for part in parts]
        self.ways = [part.captions for part in parts]  # each label's captions

    def read(self, step: int, rows: Rows) -> tuple[Tensor, list[str]]:
        places = self.places(step, rows)
        bucket = places[0].bucket
        images, labels, ways = self.images[bucket], self.labels[bucket], self.ways[bucket]
        where = to_device(torch.tensor([place.row for place in places]), images.device)
        return images[where], [self.caption(place, ways[labels[place.row]]) for place in places]

    def captions(self) -> list[str]:
        return distinct(ways for own in self.ways for ways in own)


class RecordLoader(EpochLoader):
    """The same images in the same order with the same captions as from memory, decoded on the way
    for sets that are too large for it. A picture that can't be used is replaced by another, drawn
    at random from an address. `buckets` says which records are seen in each shape, and `decode`
    brings them to it."""

    def __init__(
        self,
        records: Records,
        buckets: Mapping[Shape, Sequence[int]],
        batch_size: int,
        seed: int,
        settings: ReadingSettings,
        device: torch.device | str = "cpu",
        decode: Decode = decode_record,
    ) -> None:
        counts = {shape: len(images) for shape, images in buckets.items()}
        super().__init__(counts, batch_size, seed, settings)
        self.records = records
        self.settings = settings
        self.device = torch.device(device)
        self.decode = decode
        self._images = list(buckets.values())
        self.tally = Tally(settings.max_bad, len(records))
        self._ahead = Ahead(settings.workers, self._jobs)

    def read(self, step: int, rows: Rows) -> tuple[Tensor, list[str]]:
        if rows is not None:
            self.tally.level = logging.ERROR  # no other rank meets these pictures
        pixels, captions = [], []
        chosen = range(self.batch_size) if rows is None else rows
        for place, decoded in self._ahead.rows(step, chosen):
            self.tally.count(decoded.bad)
            if decoded.pixels is None:
                raise nothing_instead(decoded)
            pixels.append(decoded.pixels)
            captions.append(self.caption(place, decoded.record.captions))
        return to_device(torch.stack(pixels), self.device), captions

    def captions(self) -> list[str]:
        found = distinct(self.records.captions())
        if not found:
            record = self.records[0]
            raise UserError(
                f"no image has a caption that can be used; {record.name}: "
                f"{record.fault or 'it has no caption'}"
            )
        return found

    def describe(self) -> str:
        return f"{super().describe()}, read as they are needed"

    def _jobs(self, step: int, rows: Sequence[int]) -> list[Callable[[], tuple[Place, Decoded]]]:
        return [partial(self._decode, place) for place in self.places(step, rows)]

    def _decode(self, place: Place) -> tuple[Place, Decoded]:
        """The image of a place, or the first one that can be used of those that stand in for it: of
        its bucket, then of any, in the shape of its batch."""
        epoch, shape = place.epoch, self.shapes[place.bucket]
        first = self._images[place.bucket][place.row]
        chosen, bad = place, dict[str, str]()
        elsewhere = ELSEWHERE if self.decode is decode_record else 0  # latents are of one shape
        for attempt in range(1, TRIES + elsewhere + 1):
            image = self._images[chosen.bucket][chosen.row]
            cut = self._cut(epoch, image)
            decoded = self.decode(self.records[image], self.settings, cut, shape)
            bad |= dict(decoded.bad)
            if decoded.pixels is not None:
                break
            draw = generator(self.seed, "instead", epoch, first, attempt)
            own = self._rows.counts[place.bucket]
            row = int(torch.randint(own if attempt < TRIES else self.n, (), generator=draw))
            chosen = (
                Place(epoch, place.bucket, row) if attempt < TRIES else self._among_all(epoch, row)
            )
        return chosen, Decoded(decoded.record, decoded.pixels, tuple(bad.items()))

    def _among_all(self, epoch: int, row: int) -> Place:
        """The image of this number, counted through all buckets."""
        ends = np.cumsum(self._rows.counts)
        bucket = int(np.searchsorted(ends, row, side="right"))
        return Place(epoch, bucket, row - int(ends[bucket] - self._rows.counts[bucket]))

    def _cut(self, epoch: int, image: int) -> float:
        if self.settings.resize != "random-crop":
            return 0.5
        return float(torch.rand((), generator=generator(self.seed, "crop", epoch, image)))


def nothing_instead(last: Decoded) -> UserError:
    """What a loader ends with where all that stand in for a picture are bad, too."""
    name, why = last.bad[-1]
    return UserError(
        f"no image that can be used; the last of those that were tried is {name}: {why}; mend or "
        f"remove the bad ones"
    )
