"""What a model will see of a data set: a contact sheet with captions, and a table of what is there
and what is wrong with it. Looking trains nothing and stops at nothing."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from fluxsmith import render
from fluxsmith.config import RunConfig
from fluxsmith.data import build_loader
from fluxsmith.data.decoding import Decoded, Workers, decode_record
from fluxsmith.data.images import fit, to_uint8, to_unit
from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.pictures import picture_size
from fluxsmith.data.records import PictureError, Record, Records, Shards
from fluxsmith.data.settings import DataSettings
from fluxsmith.data.sources import open_source
from fluxsmith.errors import UserError
from fluxsmith.files import make_folder
from fluxsmith.text import build

LOOKED_AT = 2000  # images, evenly spread; the first ones of a stream
SHOWN = 24  # on the sheet
NAMED = 5  # of each problem


@dataclass
class Survey:
    """What was found in the images looked at."""

    images: str  # how many there are, in words
    test_images: str
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height), as kept
    captions: list[tuple[str, ...]] = field(default_factory=list)  # of each image
    classes: Counter[str] = field(default_factory=Counter)
    seen: list[Tensor] = field(default_factory=list)  # (c, size, size) uint8 each
    bad: list[tuple[str, str]] = field(default_factory=list)  # name, reason
    built_in: bool = False  # a source whose pictures are as they are meant to be

    @property
    def looked_at(self) -> int:
        return len(self.seen) + len(self.bad)


def survey(config: RunConfig, sheet: Path | None) -> Survey:
    """Looks at the data of a config, prints the table, and writes the sheet where one is asked for.

    A UserError says why a source can't be read at all, or has nothing in it that can be.
    """
    if sheet is not None:
        make_folder(sheet.parent, "--out")
    settings = replace(config.data.settings(), max_bad=1.0)
    found = look(settings)
    if not found.seen:
        name, reason = found.bad[0] if found.bad else ("any", "there are no images")
        raise UserError(f"data.path={settings.path}: no image can be used; {name}: {reason}")
    console = Console()
    console.print(table(config, found))
    if sheet is not None:
        lazily = replace(settings, in_memory=False)
        batch = build_loader(lazily, SHOWN, config.seed).batch(0)
        picture = render.grid(to_uint8(batch.images), batch.captions)
        render.save_png(sheet, picture, {"captions": batch.captions})
        console.print(f"sheet  {sheet}", markup=False, highlight=False, soft_wrap=True)
    return found


def look(settings: DataSettings) -> Survey:
    """Decodes some images as training would, and notes what they are."""
    source, test = open_source(settings, "train"), open_source(settings, "test")
    found = Survey(_count(source), _count(test))
    if isinstance(source, ImageSet):
        _look_in_memory(found, source, settings)
        return found
    jobs = (partial(_size_and_pixels, record, settings) for record in _some(source))
    results = Workers(settings.workers).in_order(jobs, ahead=64)
    total = None if isinstance(source, Shards) else min(LOOKED_AT, len(source))
    for size, decoded in track(results, total=total, description="looking", transient=True):
        found.bad += decoded.bad
        if decoded.pixels is None or size is None:
            continue
        found.seen.append(decoded.pixels)
        found.sizes[size] += 1
        found.captions.append(decoded.record.captions)
        if decoded.record.label is not None:
            found.classes[source.classes[decoded.record.label]] += 1
    return found


def _count(source: ImageSet | Records | Shards) -> str:
    return f"a stream of {len(source)} shards" if isinstance(source, Shards) else f"{len(source):,}"


def _some(source: Records | Shards) -> Iterator[Record]:
    if isinstance(source, Shards):
        read = (source.read(shard, 0) for shard in range(len(source)))
        rows = itertools.islice(itertools.chain.from_iterable(read), LOOKED_AT)
        return (record for _, record in rows)
    n = len(source)
    return (source[i * n // min(n, LOOKED_AT)] for i in range(min(n, LOOKED_AT)))


def _size_and_pixels(
    record: Record, settings: DataSettings
) -> tuple[tuple[int, int] | None, Decoded]:
    try:
        size = picture_size(record.picture)
    except PictureError:
        size = None
    return size, decode_record(record, settings)


def _look_in_memory(found: Survey, data: ImageSet, settings: DataSettings) -> None:
    found.built_in = True
    n = len(data)
    rows = torch.tensor([i * n // min(n, LOOKED_AT) for i in range(min(n, LOOKED_AT))])
    height, width = data.images.shape[-2:]
    found.sizes[width, height] = len(rows)
    images = fit(data.images[rows], settings.image_size, settings.channels, settings.resize)
    found.seen = list(images)
    found.captions = [data.captions[label] for label in data.labels[rows].tolist()]
    if data.classes is not None:
        names = data.classes.names
        found.classes = Counter(names[c] for c in data.class_labels[rows].tolist())


def table(config: RunConfig, found: Survey) -> Table:
    """A row for each thing worth knowing, problems last."""
    sheet = Table(title=f"{config.name}: data.source={config.data.source}", show_header=False)
    rows = [
        ("training images", found.images),
        ("test images", found.test_images),
        ("looked at", f"{found.looked_at:,}, of which {len(found.bad):,} can't be used"),
        ("sizes as kept", _sizes(found)),
        ("seen by the model as", _seen_as(config)),
        *_channels(found),
        *_classes(found),
        *_captions(found),
        ("tokens of a caption", _spread(_token_counts(config, found), "0")),
    ]
    problems = list(_problems(config, found)) or ["none found"]
    rows += [("problems" if i == 0 else "", problem) for i, problem in enumerate(problems)]
    for name, value in rows:
        sheet.add_row(name, value)
    return sheet


def _sizes(found: Survey) -> str:
    if len(found.sizes) == 1:
        (width, height), _ = found.sizes.most_common(1)[0]
        return f"{width}x{height}, all of them"
    by_area = sorted(found.sizes.elements(), key=lambda size: size[0] * size[1])
    chosen = by_area[0], by_area[-1], by_area[len(by_area) // 2]
    smallest, largest, middle = (f"{width}x{height}" for width, height in chosen)
    return f"{smallest} to {largest}, the median {middle}"


def _seen_as(config: RunConfig) -> str:
    data = config.data
    return f"{data.channels} x {data.image_size} x {data.image_size}, data.resize={data.resize}"


def _channels(found: Survey) -> Iterator[tuple[str, str]]:
    """Mean and standard deviation in [-1, 1]."""
    pixels = to_unit(torch.stack(found.seen)).transpose(0, 1).flatten(1).double()  # (c, n h w)
    names = ("grey",) if len(pixels) == 1 else ("red", "green", "blue")
    for name, channel in zip(names, pixels, strict=True):
        yield f"{name}, in [-1, 1]", f"mean {channel.mean():+.3f}, deviation {channel.std():.3f}"


def _classes(found: Survey) -> Iterator[tuple[str, str]]:
    if found.classes:
        ordered = found.classes.most_common()
        (most, many), (least, few) = ordered[0], ordered[-1]
        yield "classes", f"{len(found.classes)}; from {few:,} {least!r} to {many:,} {most!r}"


def _captions(found: Survey) -> Iterator[tuple[str, str]]:
    texts = [text for ways in found.captions for text in ways]
    yield (
        "captions",
        f"{len(set(texts)):,} different ones; an image has "
        + _spread([len(ways) for ways in found.captions], "0"),
    )
    yield "characters of a caption", _spread([len(text) for text in texts], "0")


def _token_counts(config: RunConfig, found: Survey) -> list[int]:
    texts = [text for ways in found.captions for text in ways]
    with torch.random.fork_rng(devices=[]):  # a learned encoder would draw its weights
        encoder = build(config.text.encoder, torch.device("cpu"), **config.text.settings())
    return encoder.token_counts(texts)


def _spread(values: Sequence[int], digits: str) -> str:
    low, high = min(values), max(values)
    if low == high:
        return str(low)
    return f"{low:,} to {high:,}, the median {median(values):,.{digits}f}"


def _problems(config: RunConfig, found: Survey) -> Iterator[str]:
    for name, reason in found.bad[:NAMED]:
        yield f"{name}: {reason}"
    if len(found.bad) > NAMED:
        yield f"and {len(found.bad) - NAMED:,} more images that can't be used"
    if len(found.bad) > (config.data.settings().max_bad * found.looked_at):
        yield (
            f"{len(found.bad) / found.looked_at:.1%} can't be used, more than data.max_bad="
            f"{config.data.settings().max_bad:g}: training would stop"
        )
    key = "t5_tokens" if config.text.encoder == "clip_t5" else "max_tokens"
    most = config.text.settings()[key]
    long = sum(count > most for count in _token_counts(config, found))
    if long:
        yield f"{long:,} captions have more tokens than the encoder takes, text.{key}={most}"
    yield from _odd_pictures(config, found)


def _odd_pictures(config: RunConfig, found: Survey) -> Iterator[str]:
    side = config.data.image_size
    if config.data.resize != "pad" and not found.built_in:
        small = sum(n for size, n in found.sizes.items() if min(size) < side)
        if small:
            yield f"{small:,} images are smaller than {side} pixels and were enlarged"
    digests = Counter(hashlib.sha256(p.numpy().tobytes()).digest() for p in found.seen)
    copies = sum(n - 1 for n in digests.values())
    if copies:
        yield f"{copies:,} images look exactly like another one"
    even = sum(bool((pixels == pixels[:, :1, :1]).all()) for pixels in found.seen)
    if even:
        yield f"{even:,} images are of a single colour"
