"""Aspect buckets of a stream: its images come in windows, each arranged in batches of one shape."""

import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from fluxsmith.data.buckets import arrange, crop_share, cut_in_words, shapes_of
from fluxsmith.data.images import Shape
from fluxsmith.data.loader import AHEAD, TRIES, nothing_instead
from fluxsmith.data.pictures import Decoded, in_order, picture_size
from fluxsmith.data.records import PictureError
from fluxsmith.data.shard_loader import Coming, Drawn, Position, ShardLoader
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


class BucketStream(ShardLoader):
    """The same images as without buckets, each once an epoch; for one of which the header alone is
    good, the next of its batch stands in, or else one of a later batch. A position is that of a
    window, of about `shuffle_buffer` images, and how many of its batches were used."""

    @cached_property
    def _arranger(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="fluxsmith-buckets")

    def _read(self, position: Position) -> Iterator[Coming]:
        read = partial(next, self._arranged(position))  # by one thread, so one after the other
        return in_order(self._arranger, itertools.repeat(read), ahead=AHEAD)

    def _instead(self, row: int) -> Iterator[Drawn]:
        images = self._coming(0).images
        yield from (images[(row + i) % len(images)] for i in range(len(images)))
        yield from (self._coming(i).images[row] for i in range(1, TRIES))

    def _arranged(self, position: Position) -> Iterator[Coming]:
        """The endless batches from a position on."""
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
                last = place + 1 == len(order)
                after = window.end if last else replace(start, used=place + 1)
                yield Coming([window.images[i] for i in images], after, shapes[bucket], bad)
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
                        raise nothing_instead(window.bad[-1]) from None
                    continue
                window.images.append(drawn)
                window.sizes.append(size)
            yield replace(window, end=position)

    def _report(self, window: Window, batches: list[tuple[Shape, list[int]]]) -> None:
        if self.settings.resize != "stretch":
            cut = [crop_share(window.sizes[i], shape) for shape, images in batches for i in images]
            told = cut_in_words(cut)
            log.warning("data.buckets cuts %s, among the first %d pictures", told, len(cut))
