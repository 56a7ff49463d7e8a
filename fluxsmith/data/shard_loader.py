"""Batches from shards that can only be read from front to back, such as tar files and streams.

Each epoch shuffles the order of the shards. The records read are shuffled in blocks, each with a
generator of its own. So a position is where a block begins and an offset in its order, and resuming
reads only from the shard that the block begins in.
"""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import torch

from fluxsmith.data.fingerprints import same_data
from fluxsmith.data.images import Shape
from fluxsmith.data.imageset import distinct
from fluxsmith.data.loader import TRIES, Ahead, Batch, Rows, batch_of, nothing_instead
from fluxsmith.data.pictures import Decode, Decoded, decode_record, in_order
from fluxsmith.data.records import (
    NO_IMAGES,
    ReadingSettings,
    Record,
    Shards,
    Tally,
    front_to_back,
)
from fluxsmith.device import to_device
from fluxsmith.errors import UserError
from fluxsmith.randomness import generator


@dataclass(frozen=True)
class Position:
    """A position in the stream: a block, the shard and record that it begins with, and how many of
    the block's records, in shuffled order, were already used; with buckets, that of a window, and
    how many of its batches were used."""

    epoch: int = 0
    block: int = 0
    turn: int = 0  # of the shard in this epoch's order
    skip: int = 0  # records of that shard before the block
    offset: int = 0
    used: int = 0


Block = tuple[Position, list[Record]]  # where it begins, and what is in it


@dataclass(frozen=True)
class Drawn:
    """A picture of the stream with all that is drawn for it, and the position after it."""

    record: Record
    caption: str  # the same, or the empty prompt
    mirrored: bool
    place: float  # of a crop
    after: Position


@dataclass(frozen=True)
class Coming:
    """A batch of the stream, read and not decoded, and the position after it."""

    images: Sequence[Drawn]
    after: Position
    shape: Shape | None = None  # in which it is seen; None: the square
    bad: Sequence[Decoded] = ()  # what was passed over before it


class ShardLoader:
    """Batches from shards, in order. A picture that can't be used is replaced by another of the
    stream, which comes in its own place as well; so what comes where is known without decoding, and
    of several ranks, each decodes its own rows alone. All of them read all records."""

    def __init__(
        self,
        shards: Shards,
        batch_size: int,
        seed: int,
        settings: ReadingSettings,
        device: torch.device | str = "cpu",
        decode: Decode = decode_record,
    ) -> None:
        self.shards = shards
        self.decode = decode
        self.batch_size = batch_size
        self.seed = seed
        self.settings = settings
        self.device = torch.device(device)
        self.tally = Tally(settings.max_bad)
        self._ahead = Ahead(settings.workers, self._jobs)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="fluxsmith-shards")
        self.digest = ""
        self._step, self._position = 0, Position()
        self._go_to(self._position, self._step)

    def batch(self, step: int, rows: Rows = None) -> Batch:
        """The next batch, or the last one once more; or some of its rows."""
        if step == self._step + 1:
            self._position = self._coming(0).after
            self._begun.popleft()
            self._step = step
        if step != self._step:
            raise ValueError(f"a stream is at step {self._step} and can't jump to {step}: resume")
        if rows is not None:
            self.tally.level = logging.ERROR  # no other rank meets these pictures
        for passed_over in self._coming(0).bad:
            self.tally.count(passed_over.bad)
        chosen = range(self.batch_size) if rows is None else rows
        found = [*map(self._usable, chosen, self._ahead.rows(step, chosen))]
        pixels = torch.stack([x for _, x in found])
        captions = [drawn.caption for drawn, _ in found]
        return batch_of(to_device(pixels, self.device), captions, self.settings.channels)

    def _usable(self, row: int, decoded: Decoded) -> tuple[Drawn, torch.Tensor]:
        """The picture of a row, or the first one that can be used of those that stand in for it."""
        for attempt, drawn in enumerate(self._instead(row)):
            if attempt:
                decoded = self._decode(drawn, self._coming(0).shape)
            self.tally.count(decoded.bad)
            if decoded.pixels is not None:
                return drawn, decoded.pixels
        raise nothing_instead(decoded)

    def _instead(self, row: int) -> Iterator[Drawn]:
        """The picture of a row of the next batch, and those in its place in the batches after it,
        which may stand in for it."""
        return (self._coming(i).images[row] for i in range(TRIES))

    def position(self, step: int) -> dict[str, Any]:
        assert step in (self._step, self._step + 1), "a stream knows only where it stands"
        here = self._position if step == self._step else self._coming(0).after
        return asdict(here) | self._told()

    def resume(self, position: dict[str, Any], step: int, origin: str) -> None:
        same_data(position, self._told(), origin)
        known = {"used": 0} | position  # which runs without buckets did not write
        self._go_to(Position(**{key.name: known[key.name] for key in fields(Position)}), step)

    def _told(self) -> dict[str, Any]:
        return {"shards": len(self.shards)} | ({"digest": self.digest} if self.digest else {})

    def captions(self) -> list[str]:
        """Those of the first records."""
        first = [*itertools.islice(front_to_back(self.shards), self.settings.shuffle_buffer)]
        found = distinct(record.captions for record in first)
        if not found:
            why = f"; {first[0].name}: {first[0].fault or 'it has no caption'}" if first else ""
            raise UserError(f"data.path={self.settings.path}: no captions in the first images{why}")
        return found

    def describe(self) -> str:
        return f"a stream of {len(self.shards):,} shards"

    def _go_to(self, position: Position, step: int) -> None:
        """From here on, `batch` gives `step` and those after it."""
        self._step = step
        self._position = position
        self._begun: deque[Coming] = deque()
        self._batches = self._read(position)
        self._ahead.forget()

    def _coming(self, ahead: int) -> Coming:
        """The batch so many after that of `self._step`."""
        while len(self._begun) <= ahead:
            self._begun.append(next(self._batches))
        return self._begun[ahead]

    def _jobs(self, step: int, rows: Sequence[int]) -> Iterable[Callable[[], Decoded]]:
        batch = self._coming(step - self._step)
        return [partial(self._decode, batch.images[row], batch.shape) for row in rows]

    def _read(self, position: Position) -> Iterator[Coming]:
        """The endless batches from a position on."""
        stream = self._draw(position)
        while True:
            images = [*itertools.islice(stream, self.batch_size)]
            yield Coming(images, images[-1].after)

    def _draw(self, position: Position) -> Iterator[Drawn]:
        """The endless stream from a position on."""
        read = partial(next, self._blocks(position))  # by one thread, so one after the other
        for start, records in in_order(self._reader, itertools.repeat(read), ahead=1):
            draw = generator(self.seed, "block", 0, start.epoch, start.block)
            order = torch.randperm(len(records), generator=draw).tolist()
            for offset in range(position.offset, len(order)):
                yield self._drawn(replace(start, offset=offset), records[order[offset]])
            position = replace(position, offset=0)  # only the first block is entered midway

    def _drawn(self, at: Position, record: Record) -> Drawn:
        draw = generator(self.seed, "record", 0, at.epoch, at.block, at.offset)
        which, dropped, mirrored, cut = torch.rand(4, generator=draw, dtype=torch.float64).tolist()
        settings, ways = self.settings, record.captions
        caption = ways[int(which * len(ways))] if ways else ""
        return Drawn(
            record,
            "" if dropped < settings.caption_dropout else caption,
            settings.flip and mirrored < 0.5,
            cut if settings.resize == "random-crop" else 0.5,
            replace(at, offset=at.offset + 1),
        )

    def _decode(self, drawn: Drawn, shape: Shape | None = None) -> Decoded:
        record = drawn.record
        decoded = self.decode(record, self.settings, drawn.place, shape)
        if drawn.mirrored and decoded.pixels is not None:
            return replace(decoded, pixels=decoded.pixels.flip(-1))
        return decoded

    def _blocks(self, at: Position) -> Iterator[Block]:
        """The blocks of all epochs from the one that begins at a position."""
        epoch, block, turn, skip = at.epoch, at.block, at.turn, at.skip
        while True:
            start, records = Position(epoch, block, turn, skip), list[Record]()
            draw = generator(self.seed, "shards", epoch)
            order = torch.randperm(len(self.shards), generator=draw).tolist()
            while turn < len(order):
                for place, record in self.shards.read(order[turn], skip):
                    records.append(record)
                    if len(records) == self.settings.shuffle_buffer:
                        yield start, records
                        block += 1
                        start, records = Position(epoch, block, turn, place + 1), []
                turn, skip = turn + 1, 0
            if records:
                yield start, records
            elif block == 0:
                raise UserError(f"data.path={self.settings.path}: {NO_IMAGES}")
            epoch, block, turn, skip = epoch + 1, 0, 0, 0
