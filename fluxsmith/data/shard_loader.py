"""Batches from shards that can only be read from front to back, such as tar files and streams.

Each epoch shuffles the order of the shards. The records read are shuffled in blocks, each with a
generator of its own. So a position is where a block begins and an offset in its order, and resuming
reads only from the shard that the block begins in.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fluxsmith.data.fingerprints import same_data
from fluxsmith.data.images import Shape
from fluxsmith.data.imageset import distinct
from fluxsmith.data.loader import Batch, Rows, batch_of
from fluxsmith.data.pictures import Decode, Decoded, decode_record, in_order
from fluxsmith.data.records import ReadingSettings, Record, Shards, Tally
from fluxsmith.device import to_device
from fluxsmith.errors import UserError
from fluxsmith.randomness import generator

AHEAD = 3  # batches that are decoded before they are asked for


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


Content = tuple[Tensor, list[str]]  # of a batch: images (b, c, h, w) uint8, or latents; captions


class ShardLoader:
    """Batches from shards, in order."""

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
        self._tally = Tally(settings.max_bad)
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="fluxsmith-data")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="fluxsmith-shards")
        self.digest = ""
        self._position = Position()
        self._last: Batch | None = None
        self._go_to(self._position, 0)

    def batch(self, step: int, rows: Rows = None) -> Batch:
        """The next batch, or the last one once more. Of several ranks, each decodes all of it: a
        picture that can't be used changes where the others come."""
        if step == self._step - 1 and self._last is not None:
            return self._last.at(rows)
        if step != self._step:
            raise ValueError(f"a stream is at step {self._step} and can't jump to {step}: resume")
        (images, captions), position = self._read()
        self._position = position  # only of whole batches: one that failed is read again
        self._step += 1
        on_device = to_device(images, self.device)
        self._last = batch_of(on_device, captions, self.settings.channels)
        return self._last.at(rows)

    def _read(self) -> tuple[Content, Position]:
        """The next batch, and the position after it."""
        pixels: list[Tensor] = []
        captions: list[str] = []
        position = self._position
        good = position.epoch  # of the last image that could be used
        while len(captions) < self.batch_size:
            drawn, picture = self._next()
            decoded = picture.result()
            self._tally.count(decoded.bad)
            position = drawn.after
            if decoded.pixels is not None:
                pixels.append(decoded.pixels)
                captions.append(drawn.caption)
                good = position.epoch
            elif position.epoch > good + 1:  # data.max_bad may allow this many of a small stream
                raise self.none_of_an_epoch(*decoded.bad[-1])
        return (torch.stack(pixels), captions), position

    def none_of_an_epoch(self, name: str, reason: str) -> UserError:
        """What a stream is told by that would go on without an end."""
        return UserError(
            f"data.path={self.settings.path}: no image of a whole epoch can be used; the last is "
            f"{name}: {reason}; mend or replace them"
        )

    def position(self, step: int) -> dict[str, Any]:
        assert step == self._step, "a stream knows only where it stands"
        return asdict(self._position) | self._told()

    def resume(self, position: dict[str, Any], step: int, origin: str) -> None:
        same_data(position, self._told(), origin)
        known = {"used": 0} | position  # which runs without buckets did not write
        self._go_to(Position(**{key.name: known[key.name] for key in fields(Position)}), step)

    def _told(self) -> dict[str, Any]:
        return {"shards": len(self.shards)} | ({"digest": self.digest} if self.digest else {})

    def captions(self) -> list[str]:
        """Those of the first records of the first shard."""
        read = itertools.islice(self.shards.read(0, 0), self.settings.shuffle_buffer)
        first = [record for _, record in read]
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
        self._last = None
        self._begun: deque[tuple[Drawn, Future[Decoded]]] = deque()
        self._stream: Iterator[Drawn] = self._draw(position)

    def _next(self) -> tuple[Drawn, Future[Decoded]]:
        """The next picture of the stream; the ones after it are being decoded."""
        while len(self._begun) < AHEAD * self.batch_size:
            drawn = next(self._stream)
            self._begun.append((drawn, self._pool.submit(self._decode, drawn)))
        return self._begun.popleft()

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
                raise UserError(f"data.path={self.settings.path}: there are no images to train on")
            epoch, block, turn, skip = epoch + 1, 0, 0, 0
