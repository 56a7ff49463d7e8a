"""Threads that decode pictures ahead of their use and hand them over in order. Pillow lets go of
the interpreter while it works, so they run at once, and nothing has to be sent between processes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from fluxsmith.data.pictures import decode
from fluxsmith.data.records import PictureError, Record
from fluxsmith.data.settings import DataSettings

T = TypeVar("T")


@dataclass(frozen=True)
class Decoded:
    """A record with its pixels, (c, size, size) uint8; None where it can't be used."""

    record: Record
    pixels: Tensor | None
    bad: tuple[tuple[str, str], ...] = ()  # (name, reason) of what could not be used


def decode_record(record: Record, settings: DataSettings, place: float = 0.5) -> Decoded:
    """The record as the model sees it; `place` in [0, 1] is where a crop is cut."""
    try:
        if not record.captions:
            raise PictureError("it has no caption")
        size, channels = settings.image_size, settings.channels
        pixels = decode(record.picture, size, channels, settings.resize, place)
    except PictureError as error:
        return Decoded(record, None, ((record.name, str(error)),))
    return Decoded(record, pixels)


class Workers:
    """So many threads; `settings.workers` of them decode for a loader."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fluxsmith-data")

    def submit(self, job: Callable[[], T]) -> "Future[T]":
        return self._pool.submit(job)

    def in_order(self, jobs: Iterable[Callable[[], T]], ahead: int) -> Iterator[T]:
        """The results of the jobs, of which at most `ahead` are begun before they are asked for."""
        begun: deque[Future[T]] = deque()
        for job in jobs:
            begun.append(self.submit(job))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
