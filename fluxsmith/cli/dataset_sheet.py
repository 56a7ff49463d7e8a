"""A dataset sheet: a table of what is in a data set and what is wrong with it, and a grid of its
pictures with their captions, as a model will see them. Pictures that can't be used are counted."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import cast

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.data import build_loader
from fluxsmith.data.buckets import crop_share, cut_in_words, nearest, shapes_of
from fluxsmith.data.images import fit, to_uint8
from fluxsmith.data.imageset import ImageSet, evenly
from fluxsmith.data.pictures import decode_record, in_order, picture_size
from fluxsmith.data.records import ReadingSettings, Record, Records, Shards
from fluxsmith.data.sources import open_source
from fluxsmith.errors import UserError
from fluxsmith.pipeline import build_text_encoder, caption_fault
from fluxsmith.sampling import render
from fluxsmith.storage.files import make_folder
from fluxsmith.text.encoder import TextEncoder

LOOKED_AT = 2000  # images, evenly spread; the first ones of a stream
SHOWN = 24  # on the sheet
NAMED = 50  # images that can't be used

Source = ImageSet | Records | Shards


@dataclass
class DatasetSheet:
    """What was found in the images looked at."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height), as kept
    captions: list[tuple[str, ...]] = field(default_factory=list)  # of each image
    classes: Counter[str] = field(default_factory=Counter)
    seen: list[Tensor] = field(default_factory=list)  # (c, size, size) uint8 each
    bad: list[tuple[str, str]] = field(default_factory=list)  # name, reason
    looked_at: int = 0


def dataset_sheet(config: RunConfig, out: Path | None) -> DatasetSheet:
    """Looks at the data of a config, prints the table, and writes the grid to `out`.

    Raises a UserError for a source that can't be read, or has no picture that can be used.
    """
    if out is not None:
        make_folder(out.parent, "--out")
    tolerant = config.data.model_copy(update={"max_bad": 1.0, "in_memory": False})
    fault = caption_fault(config)
    source, test = (open_source(tolerant, split, fault) for split in ("train", "test"))
    reading = cast(ReadingSettings, tolerant)
    found, of_test = look(source, reading), look(test, reading)
    found.bad = list(dict.fromkeys(found.bad + of_test.bad))  # a shard of both splits is one
    found.looked_at = len(found.seen) + len(of_test.seen) + len(found.bad)
    if not found.seen:
        name, reason = found.bad[0] if found.bad else ("any", "there are no images")
        raise UserError(f"data.path={tolerant.path}: no image can be used; {name}: {reason}")
    title = f"{config.name}: data.source={config.data.source}"
    # Names and captions may look like rich's markup.
    console, sheet = Console(markup=False), Table(title=title, show_header=False)
    sheet.add_row("training images", _count(source))
    sheet.add_row("test images", _count(test))
    for name, value in rows(config, found):
        sheet.add_row(name, value)
    account = None if isinstance(source, ImageSet) else source.account
    for i, line in enumerate(account.lines() if account else ()):
        sheet.add_row("" if i else "files", line)
    for i, problem in enumerate(problems(config, found) or ["none found"]):
        sheet.add_row("" if i else "problems", problem)
    console.print(sheet)
    if out is not None:
        batch = build_loader(tolerant, SHOWN, config.seed).batch(0)
        picture = render.grid(to_uint8(batch.images), batch.captions)
        render.save_png(out, picture, {"captions": batch.captions})
        console.print(f"sheet  {out}", highlight=False, soft_wrap=True)
    return found


def look(source: Source, settings: ReadingSettings) -> DatasetSheet:
    """Decodes some images as training would, and notes what they are."""
    chosen = evenly(range(len(source)), min(len(source), LOOKED_AT))
    found = DatasetSheet(looked_at=len(chosen))
    if isinstance(source, ImageSet):
        height, width = source.images.shape[-2:]
        found.sizes[width, height] = len(chosen)
        images = source.images[chosen]
        found.seen = list(fit(images, settings.image_size, settings.channels, settings.resize))
        found.captions = [source.captions[label] for label in source.labels[chosen].tolist()]
        if source.classes is not None:
            of_images = source.class_labels[chosen].tolist()
            found.classes = Counter(source.classes.names[c] for c in of_images)
        return found
    records: Iterator[Record]
    if isinstance(source, Shards):
        records, total = islice(_every_record(source), LOOKED_AT), None
    else:
        records, total = (source[i] for i in chosen), len(chosen)
    jobs = (partial(decode_record, record, settings) for record in records)
    results = in_order(ThreadPoolExecutor(settings.workers), jobs, ahead=64)
    for decoded in track(results, total=total, description="looking", transient=True):
        found.bad += decoded.bad
        if decoded.pixels is None:
            continue
        found.seen.append(decoded.pixels)
        found.sizes[picture_size(decoded.record.picture)] += 1
        found.captions.append(decoded.record.captions)
        if decoded.record.label is not None:
            found.classes[source.classes[decoded.record.label]] += 1
    found.looked_at = len(found.seen) + len(found.bad)
    return found


def _every_record(shards: Shards) -> Iterator[Record]:
    """Those of all shards; a shard that can't be read to its end is one that can't be used."""
    for shard in range(len(shards)):
        try:
            yield from (record for _, record in shards.read(shard, 0))
        except UserError as error:
            yield Record(f"shard {shard}", b"", (), fault=str(error))


def rows(config: RunConfig, found: DatasetSheet) -> Iterator[tuple[str, str]]:
    """The table: a row for each thing worth knowing."""
    data, texts = config.data, [text for ways in found.captions for text in ways]
    yield "looked at", f"{found.looked_at:,}"
    yield "width as kept", _range([width for width, _ in found.sizes.elements()])
    yield "height as kept", _range([height for _, height in found.sizes.elements()])
    size = data.image_size
    if data.buckets == "off":
        yield "seen as", f"{data.channels} x {size} x {size}, data.resize={data.resize}"
    else:
        yield from _buckets(config, found)
    if found.classes:
        ordered = found.classes.most_common()
        (most, many), (least, few) = ordered[0], ordered[-1]
        yield "classes", f"{len(found.classes)}; from {few:,} {least!r} to {many:,} {most!r}"
    yield "different captions", f"{len(set(texts)):,}"
    yield "captions of an image", _range([len(ways) for ways in found.captions])
    yield "tokens of a caption", _range(_encoder(config).token_counts(texts))


def problems(config: RunConfig, found: DatasetSheet) -> list[str]:
    """What is wrong with the images looked at."""
    encoder, texts = _encoder(config), [text for ways in found.captions for text in ways]
    named = [*_unusable(config, found), *_odd_pictures(config, found)]
    if too_long := sum(count > encoder.max_tokens for count in encoder.token_counts(texts)):
        limit = encoder.max_tokens
        named.append(f"{too_long:,} captions are cut, for the encoder takes {limit} tokens")
    return named


def _encoder(config: RunConfig) -> TextEncoder:
    with torch.random.fork_rng(devices=[]):  # a learned encoder would draw its weights
        return build_text_encoder(config, "cpu")


def _buckets(config: RunConfig, found: DatasetSheet) -> Iterator[tuple[str, str]]:
    """How many pictures each bucket has, as height x width, and what is cut off them."""
    shapes, sizes = shapes_of(config.data), list(found.sizes.elements())
    own = [shapes[nearest(size, shapes)] for size in sizes]
    counted = (f"{h}x{w}: {n:,}" for (h, w), n in Counter(own).most_common())
    yield "seen as", f"{config.data.channels} x " + ", ".join(counted)
    if config.data.resize != "stretch":
        cut = [crop_share(size, shape) for size, shape in zip(sizes, own, strict=True)]
        yield "cut off", cut_in_words(cut)


def _count(source: Source) -> str:
    return f"a stream of {len(source)} shards" if isinstance(source, Shards) else f"{len(source):,}"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low:,} to {high:,}, the median {median(values):,.0f}"


def _unusable(config: RunConfig, found: DatasetSheet) -> Iterator[str]:
    for name, reason in found.bad[:NAMED]:
        yield f"{name}: {reason}"
    if found.bad:
        share = len(found.bad) / found.looked_at
        stops = share > config.data.max_bad
        end = f", more than data.max_bad={config.data.max_bad:g}: training would stop"
        yield f"{len(found.bad):,} images can't be used, {share:.1%}{end if stops else ''}"


def _odd_pictures(config: RunConfig, found: DatasetSheet) -> Iterator[str]:
    side = config.data.image_size
    small = sum(n for size, n in found.sizes.items() if min(size) < side)
    own_files = hasattr(config.data, "max_bad")  # built-in sets are as they are meant to be
    if small and own_files and config.data.resize != "pad":
        yield f"{small:,} images are smaller than {side} pixels and were enlarged"
    digests = Counter(hashlib.sha256(p.numpy().tobytes()).digest() for p in found.seen)
    copies = sum(n - 1 for n in digests.values())
    if copies:
        yield f"{copies:,} images look exactly like another one"
    even = sum(bool((pixels == pixels[:, :1, :1]).all()) for pixels in found.seen)
    if even:
        yield f"{even:,} images are of a single colour"
