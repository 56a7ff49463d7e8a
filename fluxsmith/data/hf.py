"""Any Hugging Face data set: from the hub, or local parquet, arrow or imagefolder; whole or
streaming. Pictures stay encoded until they are needed."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fluxsmith.data.account import Account
from fluxsmith.data.captions import (
    MISSING,
    Captioner,
    Described,
    labelled,
    pick_captions,
    pick_column,
    unused,
    usual,
    value_at,
)
from fluxsmith.data.fingerprints import digest_of, fingerprint
from fluxsmith.data.imageset import evenly
from fluxsmith.data.pictures import endings, is_picture
from fluxsmith.data.records import (
    CaptionSettings,
    InMemory,
    Record,
    ShuffleBuffer,
    Split,
    path_of,
    reason,
)
from fluxsmith.data.splits import belongs, indices_of_split, named_split, own_test, own_train
from fluxsmith.errors import UserError
from fluxsmith.optional import optional

IMAGE_KEYS = ("image", "img", "jpg", "png")  # of several columns of pictures, the one that is meant
LOOKED_AT = 20  # rows that stand for all: their pictures tell the column and the data
DIGESTED = 1000  # rows whose pictures a digest is made of
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
    held_out = None if own is not None else settings.test_share
    if settings.streaming:
        of_split = partial(belongs, test_share=held_out, split=split)
        none = held_out == 0 and split == "test"
        remote = _local(path_of(settings)) is None
        if own is None and usual(("split",), splits[chosen].features):
            columns.account.note("a stream does not follow its column split; streaming=false does")
        return HFShards(rows, columns, chosen, of_split, 0 if none else rows.num_shards, remote)
    indices: Sequence[int] = range(len(rows))
    if own is None:
        words = _words(splits[chosen])
        if test := own_test(words):
            indices = [i for i in indices if (words[i] == test) == (split == "test")]
        else:
            names = [f"{chosen}/{i}" for i in indices]
            indices = indices_of_split(names, settings.test_share, split)
    return HFRecords(rows, columns, chosen, indices)


def _words(rows: Any) -> list[str]:
    """The split of each row by a column called so, where there is one."""
    (key,) = usual(("split",), rows.features) or ("",)
    return [named_split(str(word)) or "" for word in rows[key]] if key else []


@dataclass(frozen=True)
class Columns:
    """Which columns hold the picture and the captions, how captions are made, the folder that paths
    are relative to, the column of references, if there is one, and what is to be said of them."""

    image: str
    captions: tuple[str, ...]
    captioner: Captioner
    folder: Path
    reference: str | None
    account: Account

    def record(self, name: str, row: Mapping[str, Any]) -> Record:
        captions, label, fault = self.describe(row)
        picture, why_not = _picture(row[self.image], self.folder)
        if self.reference is None:
            return Record(name, picture, captions, label, why_not or fault)
        reference, missing = _picture(row[self.reference], self.folder)
        missing = missing and f"{self.reference}: {missing}"
        return Record(name, picture, captions, label, why_not or missing or fault, reference)

    def describe(self, row: Mapping[str, Any]) -> Described:
        values = [labelled(key, value_at(row, key)) for key in self.captions]
        if MISSING in values:
            return Described(fault=f"it has no {', '.join(self.captions)}")
        return self.captioner.describe(*values)

    @property
    def of_captions(self) -> list[str]:
        """The columns that the captions lie in, or below."""
        return list(dict.fromkeys(key.partition(".")[0] for key in self.captions))


class HFRecords:
    """Rows of a data set on disk, in any order."""

    def __init__(self, rows: Any, columns: Columns, name: str, indices: Sequence[int]) -> None:
        self.classes: Sequence[str] = columns.captioner.classes
        self.account = columns.account
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
        """Of all captions, and of pictures evenly spread over the rows."""
        chosen = evenly(range(len(self)), min(len(self), DIGESTED))
        contents = [fingerprint(self[i].picture) for i in chosen]
        return digest_of([self.name, contents, *self.captions()])


class HFShards:
    """A streaming data set: its own shards, each read from front to back. `belongs` says whether
    a row of this name is of the split."""

    def __init__(
        self,
        rows: Any,
        columns: Columns,
        name: str,
        belongs: Callable[[str], bool],
        shards: int,
        remote: bool,
    ) -> None:
        self.classes: Sequence[str] = columns.captioner.classes
        self.account, self.shards, self.remote = columns.account, shards, remote
        self.rows, self.columns, self.name, self.belongs = rows, columns, name, belongs

    def __len__(self) -> int:
        return self.shards

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
    datasets = optional("datasets", "hf", "data.source=hf")
    datasets.logging.set_verbosity(logging.CRITICAL)  # its errors are raised too
    return datasets


def _open(path: str, subset: str | None, streaming: bool) -> tuple[str, Path, dict[str, Any]]:
    """What is read, the folder that it lies in, and its splits by name."""
    datasets = _datasets()
    local = _local(path)
    kind = _kind(local) if local is not None and local.is_file() else None
    if local is not None and local.is_file() and kind is None:
        raise UserError(f"data.path={path}: only files of {', '.join(KINDS)} are read")
    saved = local is not None and any((local / f).is_file() for f in SAVED)
    with _reading(path) if local is not None else _reading(path, FETCH):
        if saved:
            found = datasets.load_from_disk(str(local))
        elif kind is not None:
            files = {"train": str(local)}
            found = datasets.load_dataset(kind, data_files=files, streaming=streaming)
        else:
            found = datasets.load_dataset(str(local or path), subset, streaming=streaming)
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    if streaming and saved:
        splits = {name: rows.to_iterable_dataset() for name, rows in splits.items()}
    folder = local if local is None or local.is_dir() else local.parent
    return str(local or path), folder or Path(), splits


def _kind(file: Path) -> str | None:
    """What reads a file, by its ending or by how it begins."""
    with open(file, "rb") as stream:
        begins = stream.read(6)
    by_begin = {b"PAR1": "parquet", b"ARROW1": "arrow"}
    found = (kind for mark, kind in by_begin.items() if begins.startswith(mark))
    return KINDS.get(file.suffix.lower()) or next(found, None)


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
    reference = settings.reference_key
    if reference is not None:
        pick_column("reference_key", reference, (), list(features), name)
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    if not images and settings.image_key is None:
        images = _columns_of_pictures(rows, folder, name)
    images = [key for key in images if key != reference]
    if len(images) > 1:
        images = [key for key in images if key.lower() in IMAGE_KEYS]
    image = pick_column("image_key", settings.image_key, images[:1], list(features), name)
    if settings.caption is not None:
        return Columns(image, (), Captioner(settings), folder, reference, Account())
    others = [key for key in features if key not in (image, reference)]
    keys = pick_captions(settings, others, name)
    found = [features.get(key) for key in keys]
    labels = [kind for kind in found if isinstance(kind, datasets.ClassLabel)]
    if labels and len(keys) > 1:
        raise UserError(
            f"data.caption_key={list(keys)}: classes and texts don't mix; name one column of "
            f"classes, or texts only"
        )
    captioner, account = Captioner(settings, labels[0].names if labels else ()), Account()
    if not settings.caption_key:
        account.note(f"captions are read from the column {keys[0]}{unused(others, keys)}")
    return Columns(image, keys, captioner, folder, reference, account)


def _columns_of_pictures(rows: Any, folder: Path, name: str) -> list[str]:
    """The columns without types that hold pictures in the first rows; a UserError where none
    does, which says what they hold."""
    first, found, told = list(rows.take(LOOKED_AT)), [], []
    for key in rows.features:
        values = [row[key] for row in first if row[key] is not None]
        pictures = [_picture(value, folder) for value in values]
        if any(_looks_like_a_picture(*one) for one in pictures):
            found.append(key)
        why = next((fault.removeprefix("its image is ") for _, fault in pictures if fault), "")
        told.append(f"{key} ({why or (type(values[0]).__name__ if values else 'empty')})")
    if not found:
        raise UserError(
            f"data.image_key: {name} has no column of pictures but {', '.join(told)}; name it"
        )
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
    pictures = [key for key in (columns.image, columns.reference) if key is not None]
    kept = rows.select_columns([*pictures, *columns.of_captions])
    for key in pictures:
        if isinstance(rows.features[key], datasets.Image):
            kept = kept.cast_column(key, datasets.Image(decode=False))
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
    return b"", f"its image is {many}, not a picture"
