"""Aspect buckets of a stream: its images come in windows, each arranged in batches of one shape."""

import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from fluxsmith.data.buckets import arrange, crop_share, cut_in_words, shapes_of
from fluxsmith.data.images import Shape
from fluxsmith.data.pictures import Decoded, in_order, picture_size
from fluxsmith.data.records import PictureError
from fluxsmith.data.shard_loader import AHEAD, Content, Drawn, Position, ShardLoader
from fluxsmith.errors import UserError
from fluxsmith.randomness import generator

log = logging.getLogger("fluxsmith.data")


@dataclass(frozen=True)
class Window:
    """Consecutive images of the stream, as many as whole batches hold."""

    start: Position  # its `used` apart
    images: list[Drawn]
    sizes: list[tuple[int, int]]  # (width, height) of each
    bad: list[Decoded]  # those that were passed over
    end: Position


@dataclass(frozen=True)
class Begun:
    """A batch that is being decoded."""

    images: list[tuple[Drawn, Future[Decoded]]]
    bad: list[Decoded]  # that were passed over before it
    after: Position


class BucketStream(ShardLoader):
    """The same images as without buckets, each once an epoch. A position is that of a window, of
    about `shuffle_buffer` images, and how many of its batches were used."""

    @cached_property
    def _arranger(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="fluxsmith-buckets")

    def _go_to(self, position: Position, step: int) -> None:
        super()._go_to(position, step)
        read = partial(next, self._batches(position))  # by one thread, so one after the other
        self._arranged = in_order(self._arranger, itertools.repeat(read), ahead=AHEAD)

    def _read(self) -> tuple[Content, Position]:
        begun = next(self._arranged)
        for passed_over in begun.bad:
            self._tally.count(passed_over.bad)
        pixels, captions = [], []
        for drawn, picture in begun.images:
            decoded = picture.result()
            self._tally.count(decoded.bad)
            if decoded.pixels is not None:
                pixels.append(decoded.pixels)
                captions.append(drawn.caption)
        if not pixels:
            raise UserError(f"data.path={self.settings.path}: no image of a batch can be used")
        # Others of the batch stand in for those whose header alone was good.
        whole = [i % len(pixels) for i in range(self.batch_size)]
        content = torch.stack([pixels[i] for i in whole]), [captions[i] for i in whole]
        return content, begun.after

    def _batches(self, position: Position) -> Iterator[Begun]:
        """The endless batches from a position on, being decoded."""
        shapes, used = shapes_of(self.settings), position.used
        for window in self._windows(replace(position, used=0)):
            batches = arrange(window.sizes, shapes, self.batch_size)
            if not window.start.epoch and not window.start.block and not used:
                self._report(window, [(shapes[bucket], images) for bucket, images in batches])
            start = window.start
            draw = generator(self.seed, "window", start.epoch, start.block, start.offset)
            order = torch.randperm(len(batches), generator=draw).tolist()
            bad = window.bad
            for place in range(used, len(order)):
                bucket, images = batches[order[place]]
                chosen, shape = [window.images[i] for i in images], shapes[bucket]
                begun = [(one, self._pool.submit(self._decode, one, shape)) for one in chosen]
                last = place + 1 == len(order)
                yield Begun(begun, bad, window.end if last else replace(start, used=place + 1))
                bad = []
            used = 0

    def _windows(self, position: Position) -> Iterator[Window]:
        """The windows of the stream from a position on, of images whose headers can be read."""
        many = max(1, self.settings.shuffle_buffer // self.batch_size) * self.batch_size
        stream = self._draw(position)
        while True:
            window = Window(position, [], [], [], position)
            while len(window.images) < many:
                drawn = next(stream)
                position = drawn.after
                try:
                    if drawn.record.problem:
                        raise PictureError(drawn.record.problem)
                    size = picture_size(drawn.record.picture)
                except PictureError as error:
                    bad = ((drawn.record.name, str(error)),)
                    window.bad.append(Decoded(drawn.record, None, bad))
                    if position.epoch > window.start.epoch + 1 and not window.images:
                        raise self.none_of_an_epoch(*bad[0]) from None
                    continue
                window.images.append(drawn)
                window.sizes.append(size)
            yield replace(window, end=position)

    def _report(self, window: Window, batches: list[tuple[Shape, list[int]]]) -> None:
        if self.settings.resize != "stretch":
            cut = [crop_share(window.sizes[i], shape) for shape, images in batches for i in images]
            told = cut_in_words(cut)
            log.warning("data.buckets cuts %s, among the first %d pictures", told, len(cut))
