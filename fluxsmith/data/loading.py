"""From settings to images: a whole split in memory, or a loader of training batches."""

import itertools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from rich.progress import track
from torch import Tensor

from fluxsmith.data.images import fit
from fluxsmith.data.imageset import Classes, ImageSet, evenly
from fluxsmith.data.loader import Loader, MemoryLoader, RecordLoader
from fluxsmith.data.pictures import Decoded, decode_record, in_order
from fluxsmith.data.records import (
    DataSettings,
    ReadingSettings,
    Record,
    Records,
    Shards,
    Split,
    Tally,
    front_to_back,
)
from fluxsmith.data.shard_loader import ShardLoader
from fluxsmith.data.sources import open_source
from fluxsmith.errors import UserError

log = logging.getLogger("fluxsmith.data")

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded images that data.in_memory=auto keeps in memory
STREAM_LIMIT = 10_000  # images of a stream that are used where a set in memory is needed
AHEAD = 256  # images that are decoded before they are asked for


def load(settings: DataSettings, split: Split) -> ImageSet:
    """The images of a split as the model sees them, (n, channels, size, size) uint8, in memory.

    Of a source too large for that, a part that fits, which a line in the log says; crops are from
    the middle. Raises a UserError for a source that can't be read.
    """
    source = open_source(settings, split)
    if isinstance(source, ImageSet):
        return _fitted(source, settings)
    reading = cast(ReadingSettings, settings)  # as sources of files have them
    most = MEMORY_LIMIT // _bytes(settings, 1)
    if isinstance(source, Shards):
        first = list(itertools.islice(front_to_back(source), min(most, STREAM_LIMIT)))
        log.warning("the first %s images stand for the stream", f"{len(first):,}")
        return _decode_all(first, range(len(first)), source.classes, reading)
    n = len(source)
    if n > most:
        log.warning("%s images don't fit in memory: %s stand for them", f"{n:,}", f"{most:,}")
    return _decode_all(source, evenly(range(n), min(n, most)), source.classes, reading)


def build_loader(
    settings: DataSettings, batch_size: int, seed: int, device: torch.device | str = "cpu"
) -> Loader:
    """Training batches: from memory where the images fit, else decoded on the way."""
    source = open_source(settings, "train")
    reading = cast(ReadingSettings, settings)  # as sources of files have them
    if isinstance(source, Shards):
        return ShardLoader(source, batch_size, seed, reading, device)
    if isinstance(source, ImageSet):
        data = _fitted(source, settings)
    elif not len(source):
        raise UserError(f"data.path={reading.path}: there are no images to train on")
    elif _fits_in_memory(reading, len(source)):
        data = _decode_all(source, range(len(source)), source.classes, reading)
    else:
        return RecordLoader(source, batch_size, seed, reading, device)
    return MemoryLoader(data, batch_size, seed, settings, device)


def _fits_in_memory(settings: ReadingSettings, images: int) -> bool:
    """Whether so many images are kept in memory; random crops differ from epoch to epoch, so those
    are decoded anew each time."""
    if settings.in_memory == "auto":
        return settings.resize != "random-crop" and _bytes(settings, images) <= MEMORY_LIMIT
    return settings.in_memory


def _decode_all(
    records: Sequence[Record] | Records,
    places: Sequence[int],
    classes: Sequence[str],
    settings: ReadingSettings,
) -> ImageSet:
    """The records at some places decoded, with a progress bar; the bad ones are left out and
    counted."""
    size, n = settings.image_size, len(places)
    images = torch.empty((n, settings.channels, size, size), dtype=torch.uint8)
    kept: list[tuple[int, tuple[str, ...]]] = []  # (class, captions) of each image
    tally = Tally(settings.max_bad, n)

    def decode(place: int) -> Decoded:
        return decode_record(records[place], settings)

    with ThreadPoolExecutor(settings.workers) as pool:
        decoding = in_order(pool, (partial(decode, place) for place in places), AHEAD)
        for found in track(decoding, "reading images", total=n, transient=True):
            tally.count(found.bad)
            if found.pixels is not None:
                images[len(kept)] = found.pixels
                label = found.record.label
                kept.append((-1 if label is None else label, found.record.captions))
    if not kept:
        raise UserError(f"data.path={settings.path}: there are no images for this split")
    return _with_labels(images[: len(kept)], kept, classes)


def _with_labels(
    images: Tensor, kept: Sequence[tuple[int, tuple[str, ...]]], classes: Sequence[str]
) -> ImageSet:
    """One label for each distinct (class, captions), in the order of classes."""
    distinct = list(dict.fromkeys(kept))
    if classes:
        distinct.sort(key=lambda key: key[0])
    place = {key: label for label, key in enumerate(distinct)}
    return ImageSet(
        images,
        torch.tensor([place[key] for key in kept], dtype=torch.long),
        [captions for _, captions in distinct],
        Classes(tuple(classes), torch.tensor([c for c, _ in distinct])) if classes else None,
    )


def _fitted(data: ImageSet, settings: DataSettings) -> ImageSet:
    size, channels = settings.image_size, settings.channels
    return replace(data, images=fit(data.images, size, channels, settings.resize))


def _bytes(settings: DataSettings, images: int) -> int:
    return images * settings.channels * settings.image_size**2
