"""Any Hugging Face data set: from the hub, or local parquet, arrow or imagefolder; whole or
streaming. Pictures stay encoded until they are needed."""

import contextlib
import glob
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
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
from fluxsmith.data.fingerprints import SAMPLE, digest_of, fingerprint, fingerprints
from fluxsmith.data.imageset import evenly
from fluxsmith.data.listing import files_below
from fluxsmith.data.pictures import endings, is_picture
from fluxsmith.data.records import (
    CaptionSettings,
    EncodedPicture,
    InMemory,
    Record,
    ShuffleBuffer,
    Split,
    front_to_back,
    path_of,
    reason,
)
from fluxsmith.data.splits import (
    belongs,
    indices_of_split,
    named_split,
    note_share,
    own_test,
    own_train,
    side_of,
    split_in_name,
    split_word,
)
from fluxsmith.errors import UserError
from fluxsmith.optional import optional

IMAGE_KEYS = ("image", "img", "jpg", "png")  # of several columns of pictures, the one that is meant
LOOKED_AT = 20  # rows that stand for all: their pictures tell the column and the data
BLOCK = 1000  # rows that are looked at together
DIGESTED = 1000  # rows whose pictures a digest is made of
KINDS = {
    ".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json",
}  # fmt: skip
QUOTED = "put texts that hold a comma in quotes"
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


@dataclass(frozen=True)
class Opened:
    """A data set with its splits by name and, of a local one, the folder that it lies in and the
    files of each split; `kind` is told where others may lie beside them."""

    name: str
    splits: dict[str, Any]
    remote: bool
    folder: Path = Path()
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    kind: str | None = None


def load(settings: Settings, split: Split) -> "HFRecords | HFShards":
    """The rows of a split; the test images are a share of the training split where there is no
    other. Columns that aren't named are found by their types, contents and usual names."""
    opened = _open(path_of(settings), settings.subset, settings.streaming)
    name, splits = opened.name, opened.splits
    train = settings.train_split
    if train == Settings.train_split and train not in splits:
        train = own_train(splits) or (next(iter(splits)) if len(splits) == 1 else train)
    for key, asked in (("train_split", train), ("test_split", settings.test_split)):
        if asked is not None and asked not in splits:
            raise UserError(f"data.{key}={asked}: {name} has {', '.join(splits)}; name one of them")
    own = settings.test_split or own_test(set(splits) - {train})
    chosen = own if split == "test" and own is not None else train
    with _reading(chosen):
        columns = _columns(name, opened.folder, splits[chosen], settings)
        if own is None:
            words = usual(("split",), splits[chosen].features)
            columns = replace(columns, split=words[0] if words else None)
        rows = _encoded(splits[chosen], columns)
        if not opened.remote and not Path(path_of(settings)).expanduser().exists():
            columns.account.note(f"data.path={settings.path} is read from {name}")
        if own is not None:
            note_share(columns.account, settings.test_share, own)
        _account_for(opened, train, own, rows, columns)
    if settings.streaming:
        held_out = None if own is not None else settings.test_share
        none = held_out == 0 and split == "test" and columns.split is None
        shards = 0 if none else rows.num_shards
        return HFShards(rows, columns, chosen, opened, settings, held_out, split, shards)
    indices = (
        range(len(rows)) if own is not None else _indices(rows, columns, chosen, settings, split)
    )
    return HFRecords(rows, columns, chosen, indices)


def _account_for(
    opened: Opened, train: str, own: str | None, rows: Any, columns: "Columns"
) -> None:
    """Notes the splits and the files that are not read."""
    for other in sorted(opened.splits.keys() - {train, own}):
        columns.account.pass_over(f"split beside {train}" + f" and {own}" * bool(own), other)
    if opened.kind is None:
        return
    first = next(iter(rows.take(1)), None)
    by_path = first is not None and isinstance(columns.record("", first).picture, Path)
    named = set(_named(opened, columns)) if by_path else set()
    known = {Path(file).resolve() for files in opened.files.values() for file in files}
    for name in files_below(opened.folder, columns.account):
        file = (opened.folder / name).resolve()
        if by_path and PurePosixPath(name).suffix.lower() in endings():
            if file not in named:
                columns.account.pass_over("no row", name)
        elif file not in known:
            columns.account.pass_over(f"no file of {opened.kind}", name)


def _named(opened: Opened, columns: "Columns") -> Iterator[Path]:
    """The pictures that the rows of all splits name by their paths."""
    for rows in opened.splits.values():
        for row in _encoded(rows, replace(columns, captions=(), split=None)):
            for key in columns.pictures:
                picture, _ = _picture(value_at(row, key), columns.folder)
                if isinstance(picture, Path):
                    yield picture.resolve()


def _indices(
    rows: Any, columns: "Columns", name: str, settings: Settings, split: Split
) -> Sequence[int]:
    """The rows of a split by their column split, or else by a share. Rows of one picture are of one
    split: of testing where one of them is."""
    column = columns.split
    words = [split_word(it, f"{name}/{i}") for i, it in enumerate(rows[column])] if column else []
    test = own_test(words)
    names = [f"{name}/{i}" for i in range(len(rows))]
    if settings.test_share or test:
        first: dict[object, str] = {}
        (top,) = _tops([columns.image], rows)
        blocks = rows.select_columns([top]).with_format("arrow").iter(BLOCK)
        cells = (value_at({top: cell}, columns.image) for block in blocks for cell in block[top])
        known = map(_known_by, cells)
        names = [first.setdefault(it or own, own) for it, own in zip(known, names, strict=True)]
    if test is None:
        return indices_of_split(names, settings.test_share, split)
    note_share(columns.account, settings.test_share, test)
    tested = {it for it, word in zip(names, words, strict=True) if word == test}
    pairs = zip(names, words, strict=True)
    sides = [side_of(test if it in tested else word, test) for it, word in pairs]
    if "train" not in sides:
        raise UserError(
            f"data.path={settings.path}: its rows are all for testing, by {test} in their column "
            f"{column}; leave that column out, or name rows to train on"
        )
    for i, side in enumerate(sides):
        if side not in ("train", "test"):
            columns.account.pass_over(side, f"{name}/{i}")
    return [i for i, side in enumerate(sides) if side == split]


def _known_by(cell: Any) -> object:
    """What tells the picture in a cell of Arrow's from others: its size and samples, so that little
    of a large set is read, or its path; None where there is none."""
    if cell is MISSING or not cell.is_valid:
        return None
    if isinstance(cell, Mapping):
        return next(
            filter(None, (_known_by(cell[k]) for k in ("bytes", "path") if k in cell)), None
        )
    if isinstance(cell, Sequence):
        return tuple(map(_known_by, cell))
    if not hasattr(cell, "as_buffer"):
        return str(cell)
    return _sampled(cell.as_buffer())


def _sampled(held: Any) -> str:
    """A digest of the size of some bytes and of samples of them, from the first to the last."""
    starts = (*range(0, len(held), max(SAMPLE, len(held) // 8)), max(0, len(held) - SAMPLE))
    samples = b"".join(bytes(held[start : start + SAMPLE]) for start in starts)
    return fingerprint(b"%d\n" % len(held) + samples)


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
    split: str | None = None  # the column that names the split of a row, where one is followed

    def record(self, name: str, row: Mapping[str, Any]) -> Record:
        captions, label, fault = self.describe(row)
        picture, why_not = _picture(value_at(row, self.image), self.folder)
        if self.reference is None:
            return Record(name, picture, captions, label, why_not or fault)
        reference, missing = _picture(value_at(row, self.reference), self.folder)
        missing = missing and f"{self.reference}: {missing}"
        return Record(name, picture, captions, label, why_not or missing or fault, reference)

    def describe(self, row: Mapping[str, Any]) -> Described:
        values = [labelled(key, value_at(row, key)) for key in self.captions]
        if MISSING in values:
            return Described(fault=f"it has no {', '.join(self.captions)}")
        return self.captioner.describe(*values)

    @property
    def pictures(self) -> list[str]:
        return [key for key in (self.image, self.reference) if key is not None]


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
            held = _tops(self.columns.captions, self.rows)
            texts = self.rows.select_columns(held).with_format(None)
            chosen = texts if len(self) == len(texts) else texts.select(self.indices)
            return [self.columns.describe(row).captions for row in chosen]

    def digest(self) -> str:
        """Of all captions, and of pictures evenly spread over the rows."""
        chosen = evenly(range(len(self)), min(len(self), DIGESTED))
        contents = [fingerprint(it) for i in chosen for it in _pictures(self[i])]
        return digest_of([self.name, contents, *self.captions()])


def _pictures(record: Record) -> list[EncodedPicture]:
    """That of a record, and that which its edit begins with."""
    return [it for it in (record.picture, record.reference) if it is not None]


class HFShards:
    """A streaming data set: its own shards, each read from front to back. Of `held_out` see
    `splits.belongs`; in place of names the contents of pictures count."""

    def __init__(
        self,
        rows: Any,
        columns: Columns,
        name: str,
        opened: Opened,
        settings: Settings,
        held_out: float | None,
        split: Split,
        shards: int,
    ) -> None:
        self.classes: Sequence[str] = columns.captioner.classes
        self.account, self.shards, self.remote = columns.account, shards, opened.remote
        self.rows, self.columns, self.name, self.opened = rows, columns, name, opened
        self.settings, self.held_out, self.split = settings, held_out, split

    def __len__(self) -> int:
        return self.shards

    def digest(self) -> str:
        """Of the files, and of pictures that lie beside them; of a hub, of its name and columns."""
        told = [self.name, len(self), list(self.rows.features)]
        if self.remote:
            return digest_of([*told, self.settings.path, self.settings.subset])
        files = self.opened.files.get(self.name, ())
        names = [os.path.relpath(file, self.opened.folder) for file in files]
        first = next(front_to_back(self), None)
        beside = list[str]()
        if first is not None and isinstance(first.picture, Path):
            records = itertools.islice(front_to_back(self), DIGESTED)
            beside = [fingerprint(it) for record in records for it in _pictures(record)]
        contents = fingerprints(files, self.settings.workers)
        return digest_of([*told, names, list(contents), beside])

    def _belongs(self, record: Record, row: Mapping[str, Any]) -> bool:
        """Whether a row is of the split: by its column split, or by a share of those without."""
        if self.columns.split is not None:
            word = split_word(row[self.columns.split], record.name)
            if word:
                return (own_test([word]) is not None) == (self.split == "test")
        known = record.name
        if self.held_out and isinstance(record.picture, Path):
            known = os.path.relpath(record.picture, self.opened.folder)
        elif self.held_out and isinstance(record.picture, bytes) and record.picture:
            known = _sampled(record.picture)
        return belongs(known, self.held_out, self.split)

    def read(self, shard: int, skip: int) -> Iterator[tuple[int, Record]]:
        with _reading(f"{self.name}, shard {shard}"):
            rows = self.rows.shard(num_shards=len(self), index=shard).skip(skip)
            for place, row in enumerate(rows, start=skip):
                name = f"{self.name}/{shard}/{place}"
                record = self.columns.record(name, row)
                if self._belongs(record, row):
                    yield place, record


@contextlib.contextmanager
def _reading(
    what: str, fix: str = "see that its files are there, whole and not empty"
) -> Iterator[None]:
    """Turns any error inside, from any of the libraries used, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = reason(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        if "Config name is missing" in told or "BuilderConfig" in told:
            fix = "data.subset names one of them"
        elif "Error tokenizing" in told:
            fix = QUOTED
        raise UserError(f"data.path: can't read {what}: {told}; {fix}") from None


def _datasets() -> Any:
    datasets = optional("datasets", "hf", "data.source=hf")
    datasets.logging.set_verbosity(logging.CRITICAL)  # its errors are raised too
    return datasets


def _open(path: str, subset: str | None, streaming: bool) -> Opened:
    datasets = _datasets()
    local = _local(path)
    local = None if local is None else local.resolve()  # as the library names its files
    kind = _kind(local) if local is not None and local.is_file() else None
    if local is not None and local.is_file() and kind is None:
        raise UserError(f"data.path={path}: only files of {', '.join(KINDS)} are read")
    saved = local is not None and any((local / f).is_file() for f in SAVED)
    if subset is not None and (saved or kind is not None):
        raise UserError(f"data.subset={subset}: {path} has no configurations; remove the key")
    with _reading(path) if local is not None else _reading(path, FETCH):
        if saved:
            found = datasets.load_from_disk(str(local))
        elif kind is not None:
            files = {"train": str(local)}
            found = datasets.load_dataset(kind, data_files=files, streaming=streaming)
        elif local is not None:
            return _open_folder(local, subset, streaming)
        else:
            found = datasets.load_dataset(path, subset, streaming=streaming)
        splits = dict(found) if isinstance(found, dict) else {"train": found}
        opened = Opened(str(local or path), splits, local is None)
        if local is None:
            return opened
        if saved:
            held = {
                name: [part["filename"] for part in it.cache_files] for name, it in splits.items()
            }
            if streaming:
                splits = {name: rows.to_iterable_dataset() for name, rows in splits.items()}
            return replace(opened, splits=splits, folder=local, files=held)
        return replace(opened, folder=local.parent, files={"train": [str(local)]})


def _open_folder(folder: Path, subset: str | None, streaming: bool) -> Opened:
    """A local one, of the files that the library finds in it."""
    datasets = _datasets()
    builder = datasets.load_dataset_builder(str(folder), subset)
    kind, found = builder.info.builder_name, builder.config.data_files or {}
    held = {str(split): [*map(str, files)] for split, files in found.items()}
    named = _by_names(held, folder, kind)
    given = {split: [*map(glob.escape, files)] for split, files in named.items()}
    splits = datasets.load_dataset(
        str(folder), subset, data_files=given or None, streaming=streaming
    )
    return Opened(str(folder), dict(splits), False, folder, named or held, kind)


def _by_names(held: Mapping[str, Sequence[str]], folder: Path, kind: str) -> dict[str, list[str]]:
    """The files of each split where the library takes those of several for one, for it knows their
    names in lower case only; else none. The folders of pictures may be classes, such as Test Tube,
    so that the whole name of one has to be a split's."""
    files = [file for own in held.values() for file in own] if len(held) == 1 else []
    in_folder = named_split if kind == "imagefolder" else split_in_name
    words = dict[str, str]()
    for file in files:
        path = Path(os.path.relpath(file, folder))
        told = [*map(in_folder, path.parent.parts), split_in_name(path.stem)]
        words[file] = next(filter(None, told), "")
    splits = {word for word in words.values() if word}
    if not (own_train(splits) and own_test(splits)):
        return {}
    if tables := [file for file in files if not words[file] and Path(file).stem == "metadata"]:
        raise UserError(
            f"{tables[0]}: the library reads no table of several splits; put one into the folder "
            f"of each, or set data.source=folder"
        )
    return {split: [file for file in files if words[file] == split] for split in sorted(splits)}


def _kind(file: Path) -> str | None:
    """What reads a file, by its ending or by how it begins."""
    with open(file, "rb") as stream:
        begins = stream.read(6)
    by_begin = {b"PAR1": "parquet", b"ARROW1": "arrow"}
    found = (kind for mark, kind in by_begin.items() if begins.startswith(mark))
    return KINDS.get(file.suffix.lower()) or next(found, None)


def _local(path: str) -> Path | None:
    """The folder or file that a path names, directly or, unless it is plainly one of this machine,
    below $FLUXSMITH_DATA by its last part."""
    direct = Path(path).expanduser()
    if direct.exists():
        return direct
    if path.startswith(("/", "~", ".")):
        return None
    shared = os.environ.get("FLUXSMITH_DATA")
    below = Path(shared) / direct.name if shared else None
    return below if below is not None and below.is_dir() else None


def _columns(name: str, folder: Path, rows: Any, settings: Settings) -> Columns:
    """The columns that the settings name, or else those of pictures and the usual ones."""
    datasets, features = _datasets(), rows.features
    if features is None:
        raise UserError(f"data.path={name}: a stream without types; set data.streaming=false")
    if rows.builder_name == "csv" and "__index_level_0__" in features:  # pandas' way of seeing it
        raise UserError(f"data.path={name}: its rows have more fields than the header; {QUOTED}")
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
    split = [columns.split] if columns.split is not None else []
    kept = rows.select_columns(_tops([*columns.pictures, *columns.captions, *split], rows))
    for key in _tops(columns.pictures, rows):
        if isinstance(rows.features[key], datasets.Image):
            kept = kept.cast_column(key, datasets.Image(decode=False))
    return kept


def _tops(keys: Sequence[str], rows: Any) -> list[str]:
    """The columns that keys name, or that they lead on from by dots."""
    there = rows.features
    return list(dict.fromkeys(key if key in there else key.partition(".")[0] for key in keys))


def _picture(value: Any, folder: Path) -> tuple[bytes | Path, str]:
    """The picture in a cell, or why there is none: bytes, a path, or either under its name, alone
    or in a list of one."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        if not value.keys() & {"bytes", "path"}:
            keys = f"{', '.join(value)}; data.image_key=NAME.{next(iter(value), '')}"
            return b"", f"its image is an object with {keys}"
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value, ""
    if isinstance(value, str):
        web = "its image is an address on the web; fetch the pictures first"
        path = value.removeprefix("file://").replace("\\", "/")
        return folder / path, web if "://" in path else ""
    if value is None or value is MISSING:
        return b"", "it has no image"
    many = f"list of {len(value)}" if isinstance(value, list) else type(value).__name__
    return b"", f"its image is {many}, not a picture"
