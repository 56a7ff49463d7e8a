"""Batches from shards that can only be read from front to back, such as tar files and streams.

Each epoch shuffles the order of the shards. The records read are shuffled in blocks, each with a
generator of its own. So a position is where a block begins and an offset in its order, and resuming
reads only from the shard that the block begins in.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fluxsmith.data.images import to_unit
from fluxsmith.data.imageset import distinct
from fluxsmith.data.loader import Batch
from fluxsmith.data.pictures import Decoded, decode_record, in_order
from fluxsmith.data.records import ReadingSettings, Record, Shards, Tally
from fluxsmith.device import to_device
from fluxsmith.errors import UserError
from fluxsmith.randomness import generator

AHEAD = 3  # batches that are decoded before they are asked for


@dataclass(frozen=True)
class Position:
    """A position in the stream: a block, the shard and record that it begins with, and how many of
    the block's records, in shuffled order, were already used."""

    epoch: int = 0
    block: int = 0
    turn: int = 0  # of the shard in this epoch's order
    skip: int = 0  # records of that shard before the block
    offset: int = 0


Block = tuple[Position, list[Record]]  # where it begins, and what is in it


@dataclass(frozen=True)
class Drawn:
    """A picture that is being decoded, its caption, and the position after it."""

    picture: "Future[Decoded]"
    caption: str
    mirrored: bool
    after: Position


class ShardLoader:
    """`check_caption` raises a UserError for a caption that the text encoder can't take: those of a
    stream aren't known beforehand. Its picture then counts as one that can't be used.
    """

    def __init__(
        self,
        shards: Shards,
        batch_size: int,
        seed: int,
        settings: ReadingSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shards = shards
        self.batch_size = batch_size
        self.seed = seed
        self.settings = settings
        self.device = torch.device(device)
        self._tally = Tally(settings.max_bad)
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="fluxsmith-data")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="fluxsmith-shards")
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
        good = position.epoch  # of the last image that could be used
        while len(captions) < self.batch_size:
            drawn = self._next()
            decoded = drawn.picture.result()
            self._tally.count(decoded.bad)
            position = drawn.after
            if decoded.pixels is not None:
                pixels.append(decoded.pixels.flip(-1) if drawn.mirrored else decoded.pixels)
                captions.append(drawn.caption)
                good = position.epoch
            elif position.epoch > good + 1:  # data.max_bad may allow this many of a small stream
                name, reason = decoded.bad[-1]
                raise UserError(
                    f"data.path={self.settings.path}: no image of a whole epoch can be used; the "
                    f"last is {name}: {reason}; mend or replace them"
                )
        self._position = position  # only of whole batches: one that failed is read again
        self._step += 1
        self._last = Batch(to_unit(to_device(torch.stack(pixels), self.device)), captions)
        return self._last

    def position(self, step: int) -> dict[str, Any]:
        assert step == self._step, "a stream knows only where it stands"
        return asdict(self._position) | {"shards": len(self.shards)}

    def resume(self, position: dict[str, Any], step: int, origin: str) -> None:
        if (before := position.get("shards")) != len(self.shards):
            raise UserError(
                f"{origin} was trained on a stream with shards = {before}, and it is "
                f"{len(self.shards)} now; a resumed run needs the same data"
            )
        self._go_to(Position(**{key.name: position[key.name] for key in fields(Position)}), step)

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
        """The next picture of the stream; the ones after it are being decoded."""
        while len(self._begun) < AHEAD * self.batch_size:
            self._begun.append(next(self._stream))
        return self._begun.popleft()

    def _draw(self, position: Position) -> Iterator[Drawn]:
        """The endless stream from a position on, its pictures being decoded."""
        read = partial(next, self._blocks(position))  # by one thread, so one after the other
        for start, records in in_order(self._reader, itertools.repeat(read), ahead=1):
            draw = generator(self.seed, "block", 0, start.epoch, start.block)
            order = torch.randperm(len(records), generator=draw).tolist()
            for offset in range(position.offset, len(order)):
                yield self._begin(replace(start, offset=offset), records[order[offset]])
            position = replace(position, offset=0)  # only the first block is entered midway

    def _begin(self, at: Position, record: Record) -> Drawn:
        draw = generator(self.seed, "record", 0, at.epoch, at.block, at.offset)
        which, dropped, mirrored, cut = torch.rand(4, generator=draw, dtype=torch.float64).tolist()
        settings, ways = self.settings, record.captions
        caption = ways[int(which * len(ways))] if ways else ""
        place = cut if settings.resize == "random-crop" else 0.5
        return Drawn(
            self._pool.submit(self._decode, record, caption, place),
            "" if dropped < settings.caption_dropout else caption,
            settings.flip and mirrored < 0.5,
            replace(at, offset=at.offset + 1),
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
