"""From settings to images: a whole split in memory, or a loader of training batches."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from rich.progress import track
from torch import Tensor

from fluxsmith.data.decoding import Decoded, Workers, decode_record
from fluxsmith.data.images import fit
from fluxsmith.data.imageset import Classes, ImageSet
from fluxsmith.data.loader import Loader, MemoryLoader
from fluxsmith.data.record_loader import RecordLoader
from fluxsmith.data.records import Record, Records, Shards, Tally
from fluxsmith.data.settings import DataSettings, Split
from fluxsmith.data.shard_loader import ShardLoader
from fluxsmith.data.sources import open_source
from fluxsmith.errors import UserError

log = logging.getLogger("fluxsmith.data")

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded images that data.in_memory=auto keeps in memory
STREAM_LIMIT = 10_000  # images of a stream that stand for it where a set in memory is needed
AHEAD = 256  # images that are decoded before they are asked for


def load(settings: DataSettings, split: Split) -> ImageSet:
    """The images of a split as the model sees them, (n, channels, size, size) uint8, in memory.

    Of a source too large for that, a part that fits, which a line in the log says; crops are from
    the middle. Raises a UserError for a source that can't be read.
    """
    source = open_source(settings, split)
    if isinstance(source, ImageSet):
        return _fitted(source, settings)
    most = MEMORY_LIMIT // _bytes(settings, 1)
    if isinstance(source, Shards):
        first = list(itertools.islice(_front_to_back(source), min(most, STREAM_LIMIT)))
        log.warning("the first %s images stand for the stream", f"{len(first):,}")
        return decode_all(first, range(len(first)), source.classes, settings)
    n = len(source)
    if n <= most:
        return decode_all(source, range(n), source.classes, settings)
    log.warning("%s images don't fit in memory: %s stand for them", f"{n:,}", f"{most:,}")
    return decode_all(source, [i * n // most for i in range(most)], source.classes, settings)


def build_loader(
    settings: DataSettings, batch_size: int, seed: int, device: torch.device | str = "cpu"
) -> Loader:
    """Training batches: from memory where the images fit, else decoded on the way."""
    source = open_source(settings, "train")
    if isinstance(source, Shards):
        return ShardLoader(source, batch_size, seed, settings, device=device)
    if isinstance(source, ImageSet):
        data = _fitted(source, settings)
    elif not len(source):
        raise UserError(f"data.path={settings.path}: there are no images to train on")
    elif fits_in_memory(settings, len(source)):
        data = decode_all(source, range(len(source)), source.classes, settings)
    else:
        return RecordLoader(source, batch_size, seed, settings, device=device)
    return MemoryLoader(
        data,
        batch_size,
        seed,
        caption_dropout=settings.caption_dropout,
        flip=settings.flip,
        device=device,
    )


def fits_in_memory(settings: DataSettings, images: int) -> bool:
    """Whether so many images are kept in memory; random crops differ from epoch to epoch, so those
    are decoded anew each time."""
    if settings.in_memory == "auto":
        return settings.resize != "random-crop" and _bytes(settings, images) <= MEMORY_LIMIT
    return settings.in_memory


def decode_all(
    records: Sequence[Record] | Records,
    places: Sequence[int],
    classes: Sequence[str],
    settings: DataSettings,
) -> ImageSet:
    """The records at some places decoded, with a progress bar; the bad ones are left out and
    counted."""
    n = len(places)
    tally = Tally(settings.max_bad, n)
    images = torch.empty(
        (n, settings.channels, settings.image_size, settings.image_size), dtype=torch.uint8
    )
    kept: list[tuple[int, tuple[str, ...]]] = []  # (class, captions) of each image
    for decoded in track(
        Workers(settings.workers).in_order(
            (partial(_decode_at, records, place, settings) for place in places), AHEAD
        ),
        total=n,
        description="reading images",
        transient=True,
    ):
        tally.count(decoded.bad)
        if decoded.pixels is not None:
            images[len(kept)] = decoded.pixels
            label = decoded.record.label
            kept.append((-1 if label is None else label, decoded.record.captions))
    if not kept:
        raise UserError(f"data.path={settings.path}: there are no images for this split")
    return _with_labels(images[: len(kept)], kept, classes)


def _decode_at(records: Sequence[Record] | Records, place: int, settings: DataSettings) -> Decoded:
    return decode_record(records[place], settings)


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
    return data.with_images(fit(data.images, size, channels, settings.resize))


def _front_to_back(shards: Shards) -> Iterator[Record]:
    for shard in range(len(shards)):
        for _, record in shards.read(shard, 0):
            yield record


def _bytes(settings: DataSettings, images: int) -> int:
    return images * settings.channels * settings.image_size**2
