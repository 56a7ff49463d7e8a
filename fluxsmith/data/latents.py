"""Pictures that an autoencoder has encoded already: how they are known, and how they are read.

A picture is known by its bytes or, where it is a file, by the fingerprint of that and its time of
change: a changed picture is another one. `storage.tensor_cache` keeps what was encoded.
"""

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fluxsmith.data.fingerprints import fingerprint
from fluxsmith.data.images import Shape
from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.pictures import Decode, Decoded, decode_record, in_order
from fluxsmith.data.records import DataSettings, Record, Records, Shards
from fluxsmith.errors import UserError

LATENT = "latent"  # its name in the cache
READING = 2  # rises when a picture is decoded to other pixels than before
UNREADABLE = "it could not be read when the latents were encoded"
AHEAD = 256  # records that are looked at before they are asked for


class Latents(Protocol):
    """The latents of some autoencoder at one setting, by key."""

    folder: Path | None

    def __contains__(self, key: str) -> bool: ...

    def get(self, key: str) -> Mapping[str, Tensor] | None:
        """LATENT: (c, h, w); None where it isn't there."""
        ...


def latent_key(record: Record, shape: Shape) -> str:
    """What the latents of a record, seen in a shape, are known by."""
    changed: int | str = ""
    if isinstance(record.picture, Path):
        with contextlib.suppress(OSError):
            changed = record.picture.stat().st_mtime_ns
    height, width = shape
    return f"{fingerprint(record.picture)}-{changed}-{height}x{width}"


def unreadable_key(key: str) -> str:
    """What it is noted under that a picture could not be read, in any shape, by the key of its
    latents. They are tried again by each `fluxsmith encode`, and count where they come to be."""
    return f"{key.rpartition('-')[0]}-unreadable"


def read_latent(
    latents: Latents, record: Record, settings: DataSettings, place: float, shape: Shape | None
) -> Decoded:
    """As `decode_record`, with latents in place of pixels; nothing is decoded or cut."""
    square = settings.image_size, settings.image_size
    key = latent_key(record, shape or square)
    found = latents.get(key)
    if record.problem:
        why = record.problem
    elif found is not None:
        return Decoded(record, found[LATENT])
    elif unreadable_key(key) in latents:
        why = UNREADABLE
    else:
        why = f"its latents are not, or not whole, in {latents.folder}: run fluxsmith encode again"
    return Decoded(record, None, ((record.name, why),))


def decoder(
    source: ImageSet | Records | Shards, settings: DataSettings, latents: Latents | None
) -> Decode:
    """How records are read: from their pictures, or from latents. A UserError for pictures that
    have no latents of their own."""
    if latents is None:
        return decode_record
    stream = isinstance(source, Shards)
    for key, refused, why in (
        ("source", settings.source if isinstance(source, ImageSet) else "", "it has no files"),
        ("flip", True, "a mirrored picture has other latents"),
        ("resize", "random-crop", "each cut has other latents"),
        ("reference_key", getattr(settings, "reference_key", None) or "", "edits need pictures"),
        ("in_memory", True, "latents are read as they are needed"),
        ("buckets", "auto" if stream else "", "a stream cuts what is left of a bucket as it comes"),
    ):
        if getattr(settings, key, None) == refused:
            raise UserError(
                f"data.{key}={refused}: can't be served by autoencoder.cache, since {why}; change "
                f"it or set autoencoder.cache=none"
            )
    return partial(read_latent, latents)


def expect_latents(
    records: Records, buckets: Mapping[Shape, Sequence[int]], latents: Latents, workers: int
) -> dict[Shape, list[int]]:
    """The buckets, so that a picture of the same shape can stand in for each that can't be read:
    those of a bucket that has more of them than others are in the largest. A UserError where a
    record's latents are not there."""

    def find(place: int, shape: Shape) -> tuple[str, bool, bool]:
        record = records[place]
        key = latent_key(record, shape)
        return record.name, key in latents, unreadable_key(key) in latents

    missing: list[str] = []
    good: dict[Shape, list[int]] = {shape: [] for shape in buckets}
    bad: dict[Shape, list[int]] = {shape: [] for shape in buckets}
    order = [(place, shape) for shape, places in buckets.items() for place in places]
    with ThreadPoolExecutor(workers) as pool:
        found = in_order(pool, (partial(find, *one) for one in order), AHEAD)
        for (place, shape), (name, there, noted) in zip(order, found, strict=True):
            if there or noted:
                (good if there else bad)[shape].append(place)
            else:
                missing.append(name)
    if missing:
        raise UserError(
            f"autoencoder.cache: {latents.folder} has no latents for {len(missing):,} of "
            f"{len(records):,} pictures, such as {missing[0]}: they, or the autoencoder, or how "
            f"pictures are seen, are new or changed; run fluxsmith encode with this config first"
        )
    largest = max(good, key=lambda shape: len(good[shape]))
    for shape in good:
        best = shape if len(bad[shape]) <= len(good[shape]) else largest
        good[best] += bad[shape]
    return {shape: sorted(places) for shape, places in good.items() if places}
