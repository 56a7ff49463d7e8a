"""A dataset sheet: a table of what is in a data set and what is wrong with it, and a grid of its
pictures with their captions, as a model will see them. Pictures that can't be used are counted."""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from hashlib import sha256
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
from fluxsmith.data.account import Account
from fluxsmith.data.buckets import crop_share, cut_in_words, nearest, shapes_of
from fluxsmith.data.images import Shape, fit, to_uint8
from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.pictures import decode_record, in_order, picture_size
from fluxsmith.data.records import NO_IMAGES, ReadingSettings, Record, Records, Shards
from fluxsmith.data.sources import open_source
from fluxsmith.errors import UserError
from fluxsmith.pipeline import build_text_encoder, caption_fault
from fluxsmith.sampling import render
from fluxsmith.storage.files import make_folder
from fluxsmith.text.encoder import TextEncoder

REMOTE = 2000  # images of a stream by URL that are looked at; of any other source all are
SHOWN = 24  # on the sheet
GROUP = 1000  # images of a set in memory that are brought to size at once

Source = ImageSet | Records | Shards


@dataclass
class DatasetSheet:
    """What was found in the images looked at, as counts and digests: any number of them fits."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height), as kept
    captions: Counter[int] = field(default_factory=Counter)  # how many an image has
    tokens: Counter[int] = field(default_factory=Counter)  # how many a caption has
    texts: set[bytes] = field(default_factory=set)  # digests of captions
    classes: Counter[str] = field(default_factory=Counter)
    looks: Counter[bytes] = field(default_factory=Counter)  # digests of what a model sees
    even: int = 0  # of a single colour
    bad: list[tuple[str, str]] = field(default_factory=list)  # name, reason
    more: bool = False  # there are more of them, at a URL

    @property
    def good(self) -> int:
        return self.looks.total()

    @property
    def looked_at(self) -> int:
        return self.good + len(self.bad)


def dataset_sheet(config: RunConfig, out: Path | None) -> DatasetSheet:
    """Looks at the data of a config, prints the table, and writes the grid to `out`.

    Raises a UserError for a source that can't be read, or has no picture that can be used.
    """
    if out is not None:
        make_folder(out.parent, "--out")
    tolerant = config.data.model_copy(update={"max_bad": 1.0, "in_memory": False})
    fault, encoder = caption_fault(config), _encoder(config)
    source, test = (open_source(tolerant, split, fault) for split in ("train", "test"))
    reading = cast(ReadingSettings, tolerant)
    found, of_test = look(source, reading, encoder), look(test, reading, encoder)
    if not found.good:
        bad = "".join(f"no image can be used; {name}: {why}" for name, why in found.bad[:1])
        raise UserError(f"data.path={tolerant.path}: {bad or NO_IMAGES}")
    # Names and captions may look like rich's markup.
    console = Console(markup=False)
    sheet = Table(title=f"{config.name}: data.source={config.data.source}", show_header=False)
    for name, values in {
        "training images": [_count(source)],
        "test images": [_count(test)],
        **{name: [value] for name, value in rows(config, found, of_test)},
        "files": _files(source, test),
        "problems": [*problems(config, found, of_test)] or ["none found"],
    }.items():
        for i, value in enumerate(values):
            sheet.add_row("" if i else name, value)
    console.print(sheet)
    if out is not None:
        batch = build_loader(tolerant, SHOWN, config.seed, fault=fault).batch(0)
        picture = render.grid(to_uint8(batch.images), batch.captions)
        render.save_png(out, picture, {"captions": batch.captions})
        console.print(f"sheet  {out}", highlight=False, soft_wrap=True)
    return found


def look(source: Source, settings: ReadingSettings, encoder: TextEncoder) -> DatasetSheet:
    """Decodes the images as training would, and notes what they are."""
    found = DatasetSheet()
    counts = lru_cache(maxsize=GROUP)(encoder.token_counts)  # images of a class share captions

    def note(pixels: Tensor, size: tuple[int, int], ways: tuple[str, ...], name: str) -> None:
        found.looks[sha256(pixels.reshape(-1).numpy().data).digest()] += 1
        found.even += bool((pixels == pixels[:, :1, :1]).all())
        found.sizes[size] += 1
        found.captions[len(ways)] += 1
        found.tokens.update(counts(ways))
        found.texts.update(sha256(text.encode()).digest() for text in ways)
        found.classes.update([name] if name else [])

    if isinstance(source, ImageSet):
        classes = source.classes
        for start in range(0, len(source), GROUP):
            part = source.images[start : start + GROUP]
            seen = fit(part, settings.image_size, settings.channels, settings.resize)
            for i, label in enumerate(source.labels[start : start + GROUP].tolist()):
                name = classes.names[classes.of_label[label]] if classes else ""
                note(seen[i], source.shape[::-1], source.captions[label], name)
        return found
    if isinstance(source, Shards):
        records, total = _every_record(source), None
        chosen = islice(records, REMOTE) if source.remote else records
    else:
        records, total = (source[i] for i in range(len(source))), len(source)
        chosen = records
    jobs = (partial(decode_record, record, settings) for record in chosen)
    with ThreadPoolExecutor(settings.workers) as pool:
        results = in_order(pool, jobs, ahead=64)
        for decoded in track(results, total=total, description="looking", transient=True):
            found.bad += decoded.bad
            if decoded.pixels is not None:
                record = decoded.record
                name = "" if record.label is None else source.classes[record.label]
                note(
                    decoded.pixels[: settings.channels],
                    picture_size(record.picture),
                    record.captions,
                    name,
                )
    found.more = next(records, None) is not None
    return found


def _every_record(shards: Shards) -> Iterator[Record]:
    """Those of all shards; a shard that can't be read to its end is one that can't be used."""
    for shard in range(len(shards)):
        try:
            yield from (record for _, record in shards.read(shard, 0))
        except UserError as error:
            yield Record(f"shard {shard}", b"", (), fault=str(error))


def _files(*splits: Source) -> list[str]:
    """What was passed over on the way, and where captions were found."""
    all_of_them = Account()
    for split in splits:
        if not isinstance(split, ImageSet):
            all_of_them.add(split.account)
    return list(all_of_them.lines())


def rows(
    config: RunConfig, found: DatasetSheet, of_test: DatasetSheet
) -> Iterator[tuple[str, str]]:
    """The table: a row for each thing worth knowing."""
    data = config.data
    more = ", the first of a stream that is read by URL" if found.more or of_test.more else ""
    yield "looked at", f"{found.looked_at + of_test.looked_at:,}{more}"
    yield "width as kept", _range(width for width, _ in found.sizes.elements())
    yield "height as kept", _range(height for _, height in found.sizes.elements())
    size = data.image_size
    if data.buckets == "off":
        yield "seen as", f"{data.channels} x {size} x {size}, data.resize={data.resize}"
    else:
        yield from _buckets(config, found)
    if found.classes:
        ordered = found.classes.most_common()
        (most, many), (least, few) = ordered[0], ordered[-1]
        yield "classes", f"{len(found.classes)}; from {few:,} {least!r} to {many:,} {most!r}"
    yield "different captions", f"{len(found.texts):,}"
    yield "captions of an image", _range(found.captions.elements())
    yield "tokens of a caption", _range(found.tokens.elements())


def problems(config: RunConfig, found: DatasetSheet, of_test: DatasetSheet) -> Iterator[str]:
    """What is wrong with the images looked at."""
    yield from _unusable(config, found, of_test)
    yield from _odd_pictures(config, found, of_test)
    limit = _encoder(config).max_tokens
    if too_long := sum(n for count, n in found.tokens.items() if count > limit):
        yield f"{too_long:,} captions are cut, for the encoder takes {limit} tokens"


def _encoder(config: RunConfig) -> TextEncoder:
    with torch.random.fork_rng(devices=[]):  # a learned encoder would draw its weights
        return build_text_encoder(config, "cpu")


def _buckets(config: RunConfig, found: DatasetSheet) -> Iterator[tuple[str, str]]:
    """How many pictures each bucket has, as height x width, and what is cut off them."""
    shapes, counted = shapes_of(config.data), Counter[Shape]()
    cut = list[float]()
    for size, n in found.sizes.items():
        shape = shapes[nearest(size, shapes)]
        counted[shape] += n
        cut += n * [crop_share(size, shape)]
    told = (f"{h}x{w}: {n:,}" for (h, w), n in counted.most_common())
    yield "seen as", f"{config.data.channels} x " + ", ".join(told)
    if config.data.resize != "stretch":
        yield "cut off", cut_in_words(cut)


def _count(source: Source) -> str:
    return f"a stream of {len(source)} shards" if isinstance(source, Shards) else f"{len(source):,}"


def _range(values: Iterable[int]) -> str:
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    return str(low) if low == high else f"{low:,} to {high:,}, the median {median(ordered):,.0f}"


def _unusable(config: RunConfig, found: DatasetSheet, of_test: DatasetSheet) -> Iterator[str]:
    bad = dict(found.bad + of_test.bad)  # a shard of both splits is one
    for name, reason in bad.items():
        yield f"{name}: {reason}"
    if bad:
        share = len(bad) / (found.good + of_test.good + len(bad))
        stops = len(found.bad) > config.data.max_bad * found.looked_at
        end = f", more than data.max_bad={config.data.max_bad:g}: training would stop"
        yield f"{len(bad):,} images can't be used, {share:.1%}{end if stops else ''}"


def _odd_pictures(config: RunConfig, found: DatasetSheet, of_test: DatasetSheet) -> Iterator[str]:
    side = config.data.image_size
    small = sum(n for size, n in found.sizes.items() if min(size) < side)
    own_files = hasattr(config.data, "max_bad")  # built-in sets are as they are meant to be
    if small and own_files and config.data.resize != "pad":
        yield f"{small:,} images are smaller than {side} pixels and were enlarged"
    if copies := found.good - len(found.looks):
        yield f"{copies:,} images look exactly like another one"
    if both := sum(n for look, n in of_test.looks.items() if look in found.looks):
        yield f"{both:,} test images look exactly like one that is trained on"
    if found.even:
        yield f"{found.even:,} images are of a single colour"
