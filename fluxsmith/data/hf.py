"""Any Hugging Face data set: from the hub, or local parquet, arrow or imagefolder; whole or
streaming. Pictures stay encoded until they are needed."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fluxsmith.data.captions import TEMPLATES, from_template, no_templates
from fluxsmith.data.folder import as_captions
from fluxsmith.data.records import (
    FileSettings,
    InMemory,
    Record,
    ShuffleBuffer,
    Split,
    Templates,
    belongs,
    indices_of_split,
    path_of,
    reason,
)
from fluxsmith.errors import UserError
from fluxsmith.optional import optional

CAPTION_KEYS = ("text", "caption", "captions", "prompt", "label", "labels", "fine_label")
TEST_SPLITS = ("test", "validation", "valid", "val")
KINDS = {".parquet": "parquet", ".arrow": "arrow"}
SAVED = ("dataset_dict.json", "state.json")  # one of them is in what save_to_disk wrote
FETCH = (
    "correct the path, set it to a local copy, or fetch it once with a network (it stays in "
    "$HF_HOME, and HF_HUB_OFFLINE=1 then keeps from asking)"
)


@dataclass(frozen=True)
class Settings(FileSettings):
    subset: Annotated[str | None, "The configuration of the data set, where it has several."] = None
    train_split: Annotated[str, "The split to train on."] = "train"
    test_split: Annotated[
        str | None, "The split to test on; test or validation by default, else a share held out."
    ] = None
    image_key: Annotated[
        str | None, "The column of the images; the only one of images by default."
    ] = None
    caption_key: Annotated[
        str | list[str] | None, "The column of the captions, or several; told by its name."
    ] = None
    templates: Templates = None
    streaming: Annotated[bool, "Read from front to back, without keeping a copy."] = False
    shuffle_buffer: ShuffleBuffer = 1000
    in_memory: InMemory = "auto"

    def __post_init__(self) -> None:
        if not self.streaming and self.shuffle_buffer != Settings.shuffle_buffer:
            raise ValueError(
                f"shuffle_buffer={self.shuffle_buffer}: is for streams, and all images are "
                f"shuffled here; remove the key or set data.streaming=true"
            )
        if self.streaming and self.in_memory is True:
            raise ValueError(
                "in_memory=True: a stream is never in memory; remove the key or set "
                "data.streaming=false"
            )


def load(settings: Settings, split: Split) -> "HFRecords | HFShards":
    """The rows of a split; the test images are a share of the training split where there is no
    other. Columns that aren't named are found by their types and usual names."""
    train_split, test_split = settings.train_split, settings.test_split
    name, splits = _open(path_of(settings), settings.subset, settings.streaming)
    for key, split_name in (("train_split", train_split), ("test_split", test_split)):
        if split_name is not None and split_name not in splits:
            raise UserError(
                f"data.{key}={split_name}: {name} has {', '.join(splits)}; name one of them"
            )
    own = test_split or next((s for s in TEST_SPLITS if s in splits and s != train_split), None)
    chosen = own if split == "test" and own is not None else train_split
    with _reading(chosen):
        columns = _columns(name, splits[chosen].features, settings)
        rows = _encoded(splits[chosen], columns)
    held_out = 0.0 if own is not None else settings.test_share
    if settings.streaming:
        of_split = partial(belongs, test_share=held_out, split=split)
        return HFShards(rows, columns, chosen, of_split)
    indices: Sequence[int] = range(len(rows))
    if own is None:
        indices = indices_of_split([f"{chosen}/{i}" for i in indices], held_out, split)
    return HFRecords(rows, columns, chosen, indices)


@dataclass(frozen=True)
class Columns:
    """Which columns hold the picture and the captions, and how the captions are made."""

    image: str
    captions: tuple[str, ...]
    classes: tuple[str, ...] = ()
    ways: tuple[tuple[str, ...], ...] = ()  # by class

    def record(self, name: str, row: Mapping[str, Any]) -> Record:
        captions, label = self.describe(row)
        return Record(name, _bytes_or_path(row[self.image]), captions, label)

    def describe(self, row: Mapping[str, Any]) -> tuple[tuple[str, ...], int | None]:
        """The captions of a row and its class, if there are classes."""
        if not self.classes:
            return tuple(t for key in self.captions for t in as_captions(row[key])), None
        label = row[self.captions[0]]
        known = isinstance(label, int) and 0 <= label < len(self.classes)  # -1 is unlabelled
        return (self.ways[label], label) if known else ((), None)


class HFRecords:
    """Rows of a data set on disk, in any order."""

    def __init__(self, rows: Any, columns: Columns, name: str, indices: Sequence[int]) -> None:
        self.classes: Sequence[str] = columns.classes
        self.rows, self.columns, self.name, self.indices = rows, columns, name, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        row = self.indices[index]
        with _reading(self.name):
            return self.columns.record(f"{self.name}/{row}", self.rows[row])

    def captions(self) -> Sequence[tuple[str, ...]]:
        with _reading(self.name):
            texts = self.rows.select_columns(list(self.columns.captions)).with_format(None)
            chosen = texts if len(self) == len(texts) else texts.select(self.indices)
            return [self.columns.describe(row)[0] for row in chosen]


class HFShards:
    """A streaming data set: its own shards, each read from front to back. `belongs` says whether
    a row of this name is of the split."""

    def __init__(
        self, rows: Any, columns: Columns, name: str, belongs: Callable[[str], bool]
    ) -> None:
        self.classes: Sequence[str] = columns.classes
        self.rows, self.columns, self.name, self.belongs = rows, columns, name, belongs

    def __len__(self) -> int:
        return int(self.rows.num_shards)

    def read(self, shard: int, skip: int) -> Iterator[tuple[int, Record]]:
        with _reading(f"{self.name}, shard {shard}"):
            rows = self.rows.shard(num_shards=len(self), index=shard).skip(skip)
            for place, row in enumerate(rows, start=skip):
                name = f"{self.name}/{shard}/{place}"
                if self.belongs(name):
                    yield place, self.columns.record(name, row)


@contextlib.contextmanager
def _reading(what: str, fix: str = "see that its files are there and whole") -> Iterator[None]:
    """Turns any error inside, from any of the libraries used, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"data.path: can't read {what}: {reason(error)}; {fix}") from None


def _datasets() -> Any:
    return optional("datasets", "hf", "data.source=hf")


def _open(path: str, subset: str | None, streaming: bool) -> tuple[str, dict[str, Any]]:
    """What is read, and its splits by name."""
    datasets = _datasets()
    local = _local(path)
    saved = local is not None and any((local / f).is_file() for f in SAVED)
    with _reading(path) if local is not None else _reading(path, FETCH):
        if saved:
            found = datasets.load_from_disk(str(local))
        elif local is not None and local.suffix in KINDS:
            kind, files = KINDS[local.suffix], {"train": str(local)}
            found = datasets.load_dataset(kind, data_files=files, streaming=streaming)
        else:
            found = datasets.load_dataset(str(local or path), subset, streaming=streaming)
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    if streaming and saved:
        splits = {name: rows.to_iterable_dataset() for name, rows in splits.items()}
    return str(local or path), splits


def _local(path: str) -> Path | None:
    """The folder or file that a path names, directly or below $FLUXSMITH_DATA by its last part."""
    direct = Path(path).expanduser()
    if direct.exists():
        return direct
    shared = os.environ.get("FLUXSMITH_DATA")
    below = Path(shared) / direct.name if shared else None
    return below if below is not None and below.is_dir() else None


def _columns(name: str, features: Mapping[str, Any] | None, settings: Settings) -> Columns:
    """The columns that the settings name, or else the usual ones."""
    datasets = _datasets()
    if features is None:
        raise UserError(f"data.path={name}: a stream without types; set data.streaming=false")
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    image = settings.image_key or (images[0] if images else None)
    if image is None or image not in features:
        there = ", ".join(features)
        raise UserError(f"data.image_key={image}: {name} has the columns {there}; name one of them")
    keys = _caption_keys(name, [key for key in features if key != image], settings.caption_key)
    labels = [features[key] for key in keys if isinstance(features[key], datasets.ClassLabel)]
    if not labels:
        no_templates(settings.templates, f"the texts in {', '.join(keys)}")
        return Columns(image, keys)
    if len(keys) > 1:
        raise UserError(
            f"data.caption_key={list(keys)}: classes and texts don't mix; name one column of "
            f"classes, or texts only"
        )
    names = tuple(labels[0].names)
    templates = TEMPLATES if settings.templates is None else settings.templates
    return Columns(image, keys, names, tuple(from_template(n, templates) for n in names))


def _caption_keys(
    name: str, columns: Sequence[str], asked: str | Sequence[str] | None
) -> tuple[str, ...]:
    """The columns of captions among those without pictures."""
    there = ", ".join(columns) or "no other column"
    if asked is None:
        usual = [key for key in CAPTION_KEYS if key in columns]
        if not usual:
            raise UserError(
                f"data.caption_key: {name} has {there}, and which holds the captions is not "
                f"plain; name it"
            )
        return (usual[0],)
    keys = (asked,) if isinstance(asked, str) else tuple(asked)
    for key in keys:
        if key not in columns:
            raise UserError(f"data.caption_key={key}: {name} has {there}; name one of them")
    return keys


def _encoded(rows: Any, columns: Columns) -> Any:
    """The rows with their pictures left encoded, and nothing else but the captions."""
    datasets = _datasets()
    kept = rows.select_columns([columns.image, *columns.captions])
    if isinstance(rows.features[columns.image], datasets.Image):
        return kept.cast_column(columns.image, datasets.Image(decode=False))
    return kept


def _bytes_or_path(picture: Any) -> bytes | Path:
    if isinstance(picture, Mapping):
        picture = picture.get("bytes") or picture.get("path")
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str):
        return Path(picture)
    if picture is None:
        return b""  # no decoder takes it, so it counts as a bad picture
    raise UserError(
        f"data.image_key: the column holds {type(picture).__name__}, not pictures; name another"
    )
