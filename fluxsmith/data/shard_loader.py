"""Batches from shards that can only be read from front to back, such as tar files and streams.

Each epoch shuffles the order of the shards and deals them to the ranks; what is read is shuffled in
blocks, each by an address of its own. So a position is a block's beginning and a place in the
block's order, and resuming reads nothing but the shard that the block begins in.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fluxsmith.data.decoding import Decoded, Workers, decode_record
from fluxsmith.data.images import to_unit
from fluxsmith.data.imageset import distinct
from fluxsmith.data.loader import Batch
from fluxsmith.data.records import Record, Shards, Tally
from fluxsmith.data.settings import DataSettings
from fluxsmith.device import to_device
from fluxsmith.errors import UserError
from fluxsmith.randomness import generator

AHEAD = 3  # batches that are decoded before they are asked for


@dataclass(frozen=True)
class Position:
    """Where a stream stands: a block, the shard and record that it begins with, and how many of
    the block's records, in its own order, are behind."""

    epoch: int = 0
    block: int = 0
    turn: int = 0  # of the shard in this epoch's order
    skip: int = 0  # records of that shard before the block
    offset: int = 0


@dataclass(frozen=True)
class Block:
    start: Position
    records: list[Record]


@dataclass(frozen=True)
class Drawn:
    """A picture on its way, its caption, and where the stream stands behind it."""

    picture: "Future[Decoded]"
    caption: str
    mirrored: bool
    after: Position


class ShardLoader:
    """Rank `rank` of `world` reads shards that no other rank does; where there are fewer shards
    than ranks, each reads all of them and takes every `world`-th record.

    `check_caption` raises a UserError for a caption that the text encoder can't take; its picture
    then counts among those that can't be used. A stream is not known beforehand, and one caption
    in a million should end no run.
    """

    def __init__(
        self,
        shards: Shards,
        batch_size: int,
        seed: int,
        settings: DataSettings,
        *,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.shards = shards
        self.batch_size = batch_size
        self.seed = seed
        self.settings = settings
        self.device = torch.device(device)
        self.rank, self.world = rank, world
        self._tally = Tally(settings.max_bad)
        self._workers = Workers(settings.workers)
        self._reader = Workers(1)
        self.check_caption: Callable[[Sequence[str]], object] = lambda captions: None
        self._position = Position()
        self._last: Batch | None = None
        self._go_to(self._position, 0)

    def batch(self, step: int) -> Batch:
        """The next batch, or the last one once more."""
        if step == self._step - 1 and self._last is not None:
            return self._last
        if step != self._step:
            raise ValueError(f"a stream is at step {self._step} and can't jump to {step}: resume")
        pixels: list[Tensor] = []
        captions: list[str] = []
        position = self._position
        while len(captions) < self.batch_size:
            drawn = self._next()
            decoded = drawn.picture.result()
            self._tally.count(decoded.bad)
            position = drawn.after
            if decoded.pixels is not None:
                pixels.append(decoded.pixels.flip(-1) if drawn.mirrored else decoded.pixels)
                captions.append(drawn.caption)
        self._position = position  # only of whole batches: one that failed is read again
        self._step += 1
        images = to_device(torch.stack(pixels), self.device)
        batch = Batch(to_unit(images), captions)
        self._last = batch
        return batch

    def position(self, step: int) -> dict[str, Any]:
        if step != self._step:
            raise ValueError(f"a stream knows where it stands at step {self._step}, not {step}")
        return asdict(self._position) | {"shards": len(self.shards), "world": self.world}

    def resume(self, position: dict[str, Any], step: int, origin: str) -> None:
        now = {"shards": len(self.shards), "world": self.world}
        for key, value in now.items():
            if position.get(key) != value:
                raise UserError(
                    f"{origin} was trained on a stream with {key} = {position.get(key)}, and it is "
                    f"{value} now; a resumed run needs the same data"
                )
        self._go_to(Position(**{k: v for k, v in position.items() if k not in now}), step)

    def captions(self) -> list[str]:
        """Those of the first records of the first shard, as far as the text encoder takes them."""
        first = itertools.islice(self.shards.read(0, 0), self.settings.shuffle_buffer)
        found = distinct(record.captions for _, record in first)
        taken = [caption for caption in found if self._problem(caption) is None]
        if not taken:
            self.check_caption(found)  # says why
        return taken

    def describe(self) -> str:
        return f"a stream of {len(self.shards):,} shards"

    def _go_to(self, position: Position, step: int) -> None:
        self._step = step
        self._position = position
        self._last = None
        self._begun: deque[Drawn] = deque()
        self._stream: Iterator[Drawn] = self._draw(position)

    def _next(self) -> Drawn:
        """The next picture of the stream, with those behind it being decoded."""
        while len(self._begun) < AHEAD * self.batch_size:
            self._begun.append(next(self._stream))
        return self._begun.popleft()

    def _draw(self, position: Position) -> Iterator[Drawn]:
        """The endless stream from a position on, its pictures being decoded."""
        read = partial(next, self._blocks(position))  # by one thread, so one after the other
        for block in self._reader.in_order(itertools.repeat(read), ahead=1):
            start = block.start
            order = torch.randperm(
                len(block.records), generator=generator(self.seed, "block", *self._at(start))
            ).tolist()
            for offset in range(position.offset, len(order)):
                yield self._begin(block, offset, block.records[order[offset]])
            position = replace(position, offset=0)  # only the first block is entered midway

    def _begin(self, block: Block, offset: int, record: Record) -> Drawn:
        draw = generator(self.seed, "record", *self._at(block.start), offset)
        which, dropped, mirrored, cut = torch.rand(4, generator=draw, dtype=torch.float64).tolist()
        settings, ways = self.settings, record.captions
        caption = ways[int(which * len(ways))] if ways else ""
        place = cut if settings.resize == "random-crop" else 0.5
        return Drawn(
            self._workers.submit(partial(self._decode, record, caption, place)),
            "" if dropped < settings.caption_dropout else caption,
            settings.flip and mirrored < 0.5,
            replace(block.start, offset=offset + 1),
        )

    def _decode(self, record: Record, caption: str, place: float) -> Decoded:
        if problem := self._problem(caption):
            return Decoded(record, None, ((record.name, problem),))
        return decode_record(record, self.settings, place)

    def _problem(self, caption: str) -> str | None:
        try:
            self.check_caption([caption])
        except UserError as error:
            return str(error)
        return None

    def _at(self, start: Position) -> tuple[int, int, int]:
        return self.rank, start.epoch, start.block

    def _blocks(self, at: Position) -> Iterator[Block]:
        """The blocks of all epochs from the one that begins at a position."""
        epoch, block, turn, skip = at.epoch, at.block, at.turn, at.skip
        while True:
            start, records = Position(epoch, block, turn, skip), list[Record]()
            order = self._order(epoch)
            while turn < len(order):
                for place, record in self.shards.read(order[turn], skip):
                    if self._shared and place % self.world != self.rank:
                        continue
                    records.append(record)
                    if len(records) == self.settings.shuffle_buffer:
                        yield Block(start, records)
                        block += 1
                        start, records = Position(epoch, block, turn, place + 1), []
                turn, skip = turn + 1, 0
            if records:
                yield Block(start, records)
            elif block == 0:
                raise UserError(f"data.path={self.settings.path}: there are no images to train on")
            epoch, block, turn, skip = epoch + 1, 0, 0, 0

    @property
    def _shared(self) -> bool:
        return len(self.shards) < self.world

    def _order(self, epoch: int) -> list[int]:
        """This rank's shards in the order of an epoch, which all ranks agree on."""
        draw = generator(self.seed, "shards", epoch)
        order = torch.randperm(len(self.shards), generator=draw).tolist()
        return order if self._shared else order[self.rank :: self.world]
