"""From settings to images: a whole split in memory, or a loader of training batches."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from rich.progress import Progress, track
from torch import Tensor

from fluxsmith.data.bucket_stream import BucketStream
from fluxsmith.data.buckets import crop_share, cut_in_words, nearest, shapes_of
from fluxsmith.data.derived import CaptionFault
from fluxsmith.data.images import Shape, fit
from fluxsmith.data.imageset import Classes, ImageSet, evenly
from fluxsmith.data.latents import Latents, decoder, expect_latents
from fluxsmith.data.loader import Loader, MemoryLoader, RecordLoader
from fluxsmith.data.pictures import Decoded, decode_record, in_order, picture_size
from fluxsmith.data.records import (
    NO_IMAGES,
    STREAM_SAMPLE,
    DataSettings,
    PictureError,
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


def load(
    settings: DataSettings,
    split: Split,
    fault: CaptionFault | None = None,
    enough: int | None = None,
) -> ImageSet:
    """The images of a split as the model sees them, (n, channels, size, size) uint8, in memory.

    Of a source too large for that, a part that fits, which a line in the log says; crops are from
    the middle. `fault` says of a caption why it can't be used. Where so many images are `enough`,
    no more are decoded. Raises a UserError for a source that can't be read.
    """
    source = open_source(settings, split, fault)
    square = settings.image_size, settings.image_size
    if isinstance(source, ImageSet):
        return _fitted(source, square, settings)
    reading = cast(ReadingSettings, settings)  # as sources of files have them
    fitting = MEMORY_LIMIT // _bytes(settings, 1)
    most = fitting if enough is None else min(fitting, enough)
    if isinstance(source, Shards):
        first = list(itertools.islice(front_to_back(source), min(most, STREAM_LIMIT)))
        if enough is None:
            log.warning("the first %s images stand for the stream", f"{len(first):,}")
        every = {square: range(len(first))}
        return _decode_all(first, every, source.classes, reading, split)[0]
    n = len(source)
    if n > most and enough is None:
        log.warning("%s images don't fit in memory: %s stand for them", f"{n:,}", f"{most:,}")
    chosen = {square: evenly(range(n), min(n, most))}
    return _decode_all(source, chosen, source.classes, reading, split)[0]


def build_loader(
    settings: DataSettings,
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    fault: CaptionFault | None = None,
    latents: Latents | None = None,
) -> Loader:
    """Training batches: from memory where the images fit, else decoded on the way; or of latents
    in place of images, where there are some. `fault` says of a caption why it can't be used."""
    source = open_source(settings, "train", fault)
    loader = _loader_of(source, settings, batch_size, seed, device, latents)
    loader.digest = source.digest()
    if not isinstance(source, ImageSet):
        for line in source.account.lines():
            log.warning("%s", line)
    return loader


def _loader_of(
    source: ImageSet | Records | Shards,
    settings: DataSettings,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    latents: Latents | None,
) -> Loader:
    reading = cast(ReadingSettings, settings)  # as sources of files have them
    decode = decoder(source, settings, latents)
    if isinstance(source, Shards):
        stream = ShardLoader if settings.buckets == "off" else BucketStream
        return stream(source, batch_size, seed, reading, device, decode)
    if isinstance(source, ImageSet):
        height, width = source.shape
        shapes = shapes_of(settings)
        parts = [_fitted(source, shapes[nearest((width, height), shapes)], settings)]
        return MemoryLoader(parts, batch_size, seed, settings, device)
    if not len(source):
        raise UserError(f"data.path={reading.path}: {NO_IMAGES}")
    buckets = find_buckets(source, reading)
    if latents is not None:
        buckets = expect_latents(source, buckets, latents, reading.workers)
    elif _fits_in_memory(reading, len(source)):
        parts = _decode_all(source, buckets, source.classes, reading)
        return MemoryLoader(parts, batch_size, seed, settings, device)
    return RecordLoader(source, buckets, batch_size, seed, reading, device, decode)


def find_buckets(records: Records, settings: ReadingSettings) -> dict[Shape, list[int]]:
    """Which records are seen in which shape, told by the headers of their files, with a progress
    bar; a line in the log says what is cut. Records that can't be read go to the square."""
    shapes = shapes_of(settings)
    if len(shapes) == 1:
        return {shapes[0]: list(range(len(records)))}
    buckets: dict[Shape, list[int]] = {shape: [] for shape in shapes}

    def size(place: int) -> tuple[int, int]:
        try:
            return picture_size(records[place].picture)
        except PictureError:  # which is counted when it is decoded
            return shapes[0]

    cut = []
    with ThreadPoolExecutor(settings.workers) as pool:
        sizes = in_order(pool, (partial(size, i) for i in range(len(records))), AHEAD)
        for i, found in enumerate(track(sizes, "sizes", total=len(records), transient=True)):
            shape = shapes[nearest(found, shapes)]
            buckets[shape].append(i)
            cut.append(crop_share(found, shape))
    if settings.resize != "stretch":
        log.warning("data.buckets cuts %s", cut_in_words(cut))
    return {shape: images for shape, images in buckets.items() if images}


def _fits_in_memory(settings: ReadingSettings, images: int) -> bool:
    """Whether so many images are kept in memory; random crops differ from epoch to epoch, so those
    are decoded anew each time."""
    if settings.in_memory == "auto":
        return settings.resize != "random-crop" and _bytes(settings, images) <= MEMORY_LIMIT
    return settings.in_memory


def _decode_all(
    records: Sequence[Record] | Records,
    buckets: Mapping[Shape, Sequence[int]],
    classes: Sequence[str],
    settings: ReadingSettings,
    split: Split = "train",
) -> list[ImageSet]:
    """The records of each shape decoded, with a progress bar; the bad ones are left out and
    counted. Of few test images, one that is bad is no large share of all images."""
    n = sum(map(len, buckets.values()))
    tally, parts = Tally(settings.max_bad, max(n, STREAM_SAMPLE) if split == "test" else n), []
    with ThreadPoolExecutor(settings.workers) as pool, Progress(transient=True) as progress:
        task = progress.add_task("reading images", total=n)
        for shape, places in buckets.items():
            channels = settings.channels * (1 if settings.reference_key is None else 2)
            images = torch.empty((len(places), channels, *shape), dtype=torch.uint8)
            kept: list[tuple[int, tuple[str, ...]]] = []  # (class, captions) of each image
            jobs = (partial(_decode_at, records, place, settings, shape) for place in places)
            for found in in_order(pool, jobs, AHEAD):
                progress.advance(task)
                tally.count(found.bad, stop=False)
                if found.pixels is not None:
                    images[len(kept)] = found.pixels
                    label = found.record.label
                    kept.append((-1 if label is None else label, found.record.captions))
            if kept or not n:
                pairs = images[: len(kept)].split(settings.channels, dim=1)
                parts.append(_with_labels(pairs, kept, classes))
    tally.check()
    if not parts:
        name, why = next(iter(tally.bad.items()))
        raise UserError(f"data.path={settings.path}: no image can be used; {name}: {why}")
    return parts


def _decode_at(
    records: Sequence[Record] | Records, place: int, settings: DataSettings, shape: Shape
) -> Decoded:
    return decode_record(records[place], settings, shape=shape)


def _with_labels(
    pairs: Sequence[Tensor], kept: Sequence[tuple[int, tuple[str, ...]]], classes: Sequence[str]
) -> ImageSet:
    """Images, and references if there are some. One label for each distinct (class, captions), in
    the order of classes."""
    distinct = list(dict.fromkeys(kept))
    if classes:
        distinct.sort(key=lambda key: key[0])
    place = {key: label for label, key in enumerate(distinct)}
    of_label = torch.tensor([c for c, _ in distinct], dtype=torch.long)
    return ImageSet(
        pairs[0],
        torch.tensor([place[key] for key in kept], dtype=torch.long),
        [captions for _, captions in distinct],
        Classes(tuple(classes), of_label) if classes else None,
        pairs[1] if len(pairs) > 1 else None,
    )


def _fitted(data: ImageSet, shape: Shape, settings: DataSettings) -> ImageSet:
    how = shape, settings.channels, settings.resize
    references = None if data.references is None else fit(data.references, *how)
    return replace(data, images=fit(data.images, *how), references=references)


def _bytes(settings: DataSettings, images: int) -> int:
    pictures = 1 if getattr(settings, "reference_key", None) is None else 2
    return images * pictures * settings.channels * settings.image_size**2
