"""Any Hugging Face data set: from the hub, or local parquet, arrow or imagefolder; whole or
streaming. Pictures stay encoded until they are needed."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fluxsmith.data.account import Account
from fluxsmith.data.captions import (
    Captioner,
    Described,
    pick_captions,
    pick_column,
    value_at,
)
from fluxsmith.data.imageset import evenly
from fluxsmith.data.pictures import endings, is_picture
from fluxsmith.data.records import (
    CaptionSettings,
    InMemory,
    Record,
    ShuffleBuffer,
    Split,
    digest_of,
    path_of,
    reason,
    size_of,
)
from fluxsmith.data.splits import belongs, indices_of_split, own_test, own_train
from fluxsmith.errors import UserError
from fluxsmith.optional import optional

IMAGE_KEYS = ("image", "img", "jpg", "png")  # of several columns of pictures, the one that is meant
LOOKED_AT = 20  # rows that stand for all: their pictures tell the column and the data
KINDS = {
    ".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json",
}  # fmt: skip
SAVED = ("dataset_dict.json", "state.json")  # one of them is in what save_to_disk wrote
FETCH = (
    "correct the path, set it to a local copy, or fetch it once with a network (it stays in "
    "$HF_HOME, and HF_HUB_OFFLINE=1 then keeps from asking)"
)


@dataclass(frozen=True)
class Settings(CaptionSettings):
    subset: Annotated[str | None, "The configuration of the data set, where it has several."] = None
    train_split: Annotated[
        str, "The split to train on; in place of train also training, or the only one there is."
    ] = "train"
    test_split: Annotated[
        str | None, "The split to test on; test or validation by default, else a share held out."
    ] = None
    streaming: Annotated[bool, "Read from front to back, without keeping a copy."] = False
    shuffle_buffer: ShuffleBuffer = 1000
    in_memory: InMemory = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
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
    other. Columns that aren't named are found by their types, contents and usual names."""
    name, folder, splits = _open(path_of(settings), settings.subset, settings.streaming)
    train = settings.train_split
    if train == Settings.train_split and train not in splits:
        train = own_train(splits) or (next(iter(splits)) if len(splits) == 1 else train)
    for key, asked in (("train_split", train), ("test_split", settings.test_split)):
        if asked is not None and asked not in splits:
            raise UserError(f"data.{key}={asked}: {name} has {', '.join(splits)}; name one of them")
    own = settings.test_split or own_test(set(splits) - {train})
    chosen = own if split == "test" and own is not None else train
    with _reading(chosen):
        columns = _columns(name, folder, splits[chosen], settings)
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
    """Which columns hold the picture and the captions, how captions are made, and the folder that
    paths are relative to."""

    image: str
    captions: tuple[str, ...]
    captioner: Captioner
    folder: Path

    def record(self, name: str, row: Mapping[str, Any]) -> Record:
        captions, label, fault = self.describe(row)
        picture, why_not = _picture(row[self.image], self.folder)
        return Record(name, picture, captions, label, why_not or fault)

    def describe(self, row: Mapping[str, Any]) -> Described:
        return self.captioner.describe(*(value_at(row, key) for key in self.captions))

    @property
    def of_captions(self) -> list[str]:
        """The columns that the captions lie in, or below."""
        return list(dict.fromkeys(key.partition(".")[0] for key in self.captions))


class HFRecords:
    """Rows of a data set on disk, in any order."""

    def __init__(self, rows: Any, columns: Columns, name: str, indices: Sequence[int]) -> None:
        self.classes: Sequence[str] = columns.captioner.classes
        self.account = Account()
        self.rows, self.columns, self.name, self.indices = rows, columns, name, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        row = self.indices[index]
        with _reading(self.name):
            return self.columns.record(f"{self.name}/{row}", self.rows[row])

    def captions(self) -> Sequence[tuple[str, ...]]:
        if not self.columns.captions:
            return [self.columns.describe({}).captions] * len(self)
        with _reading(self.name):
            texts = self.rows.select_columns(self.columns.of_captions).with_format(None)
            chosen = texts if len(self) == len(texts) else texts.select(self.indices)
            return [self.columns.describe(row).captions for row in chosen]

    def digest(self) -> str:
        """Of all captions, and of the sizes of some pictures."""
        pictures = (self[i].picture for i in evenly(range(len(self)), min(len(self), LOOKED_AT)))
        sizes = [len(p) if isinstance(p, bytes) else size_of(p) for p in pictures]
        return digest_of([self.name, sizes, *self.captions()])


class HFShards:
    """A streaming data set: its own shards, each read from front to back. `belongs` says whether
    a row of this name is of the split."""

    def __init__(
        self, rows: Any, columns: Columns, name: str, belongs: Callable[[str], bool]
    ) -> None:
        self.classes: Sequence[str] = columns.captioner.classes
        self.account = Account()
        self.rows, self.columns, self.name, self.belongs = rows, columns, name, belongs

    def __len__(self) -> int:
        return int(self.rows.num_shards)

    def digest(self) -> str:
        return digest_of([self.name, len(self), list(self.rows.features)])

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
        told = reason(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise UserError(f"data.path: can't read {what}: {told}; {fix}") from None


def _datasets() -> Any:
    return optional("datasets", "hf", "data.source=hf")


def _open(path: str, subset: str | None, streaming: bool) -> tuple[str, Path, dict[str, Any]]:
    """What is read, the folder that it lies in, and its splits by name."""
    datasets = _datasets()
    local = _local(path)
    if local is not None and local.is_file() and local.suffix not in KINDS:
        raise UserError(f"data.path={path}: only files of {', '.join(KINDS)} are read")
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
    folder = local if local is None or local.is_dir() else local.parent
    return str(local or path), folder or Path(), splits


def _local(path: str) -> Path | None:
    """The folder or file that a path names, directly or below $FLUXSMITH_DATA by its last part."""
    direct = Path(path).expanduser()
    if direct.exists():
        return direct
    shared = os.environ.get("FLUXSMITH_DATA")
    below = Path(shared) / direct.name if shared else None
    return below if below is not None and below.is_dir() else None


def _columns(name: str, folder: Path, rows: Any, settings: Settings) -> Columns:
    """The columns that the settings name, or else those of pictures and the usual ones."""
    datasets, features = _datasets(), rows.features
    if features is None:
        raise UserError(f"data.path={name}: a stream without types; set data.streaming=false")
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    if not images and settings.image_key is None:
        images = _columns_of_pictures(rows, folder)
    if len(images) > 1:
        images = [key for key in images if key.lower() in IMAGE_KEYS]
    image = pick_column("image_key", settings.image_key, images[:1], list(features), name)
    if settings.caption is not None:
        return Columns(image, (), Captioner(settings), folder)
    others = [key for key in features if key != image]
    keys = pick_captions(settings, others, name)
    found = [features.get(key) for key in keys]
    labels = [kind for kind in found if isinstance(kind, datasets.ClassLabel)]
    if labels and len(keys) > 1:
        raise UserError(
            f"data.caption_key={list(keys)}: classes and texts don't mix; name one column of "
            f"classes, or texts only"
        )
    return Columns(image, keys, Captioner(settings, labels[0].names if labels else ()), folder)


def _columns_of_pictures(rows: Any, folder: Path) -> list[str]:
    """The columns without types that hold pictures in the first rows."""
    first = list(rows.take(LOOKED_AT))
    found = []
    for key in rows.features:
        values = [row[key] for row in first if row[key] is not None]
        if values and _looks_like_a_picture(*_picture(values[0], folder)):
            found.append(key)
    return found


def _looks_like_a_picture(picture: bytes | Path, fault: str) -> bool:
    if fault:
        return False
    if isinstance(picture, Path):
        return picture.suffix.lower() in endings()
    return is_picture(picture)


def _encoded(rows: Any, columns: Columns) -> Any:
    """The rows with their pictures left encoded, and nothing else but the captions."""
    datasets = _datasets()
    kept = rows.select_columns([columns.image, *columns.of_captions])
    if isinstance(rows.features[columns.image], datasets.Image):
        return kept.cast_column(columns.image, datasets.Image(decode=False))
    return kept


def _picture(value: Any, folder: Path) -> tuple[bytes | Path, str]:
    """The picture in a cell, or why there is none: bytes, a path, or either under its name, alone
    or in a list of one."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value, ""
    if isinstance(value, str):
        web = "its image is an address on the web; fetch the pictures first"
        return folder / value, web if "://" in value else ""
    if value is None:
        return b"", "it has no image"
    many = f"list of {len(value)}" if isinstance(value, list) else type(value).__name__
    return b"", f"its image is {many}, not a picture; data.image_key names another column"
