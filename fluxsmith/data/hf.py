"""Any Hugging Face data set: from the hub, or local parquet, arrow or imagefolder; whole or
streaming. Pictures stay encoded until they are needed."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxsmith.data.captions import TEMPLATES, from_template, no_templates
from fluxsmith.data.folder import as_captions
from fluxsmith.data.records import TEST_SHARE, Record, indices_of_split, split_by_name
from fluxsmith.data.settings import Split
from fluxsmith.errors import UserError
from fluxsmith.optional import optional

CAPTION_KEYS = ("text", "caption", "captions", "prompt", "label", "labels", "fine_label")
TEST_SPLITS = ("test", "validation", "valid", "val")
KINDS = {".parquet": "parquet", ".arrow": "arrow"}


def load(
    path: str | None,
    split: Split,
    *,
    subset: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    streaming: bool = False,
    image_key: str | None = None,
    caption_key: str | Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    test_share: float = TEST_SHARE,
) -> "HFRecords | HFShards":
    """The rows of a split; the test images are a share of the training split where there is no
    other. Columns that aren't named are told by their types and usual names."""
    name, splits = _open(path, subset, streaming)
    if train_split not in splits:
        raise UserError(
            f"data.train_split={train_split}: {name} has {', '.join(splits)}; name one of them"
        )
    if test_split is not None and test_split not in splits:
        raise UserError(
            f"data.test_split={test_split}: {name} has {', '.join(splits)}; name one of them"
        )
    own = test_split or next((s for s in TEST_SPLITS if s in splits and s != train_split), None)
    chosen = own if split == "test" and own is not None else train_split
    with _reading(chosen):
        rows = splits[chosen]
        columns = _columns(name, rows.features, image_key, caption_key, templates)
        encoded = _encoded(rows, columns)
    held_out = 0.0 if own is not None else test_share
    if streaming:
        return HFShards(encoded, columns, chosen, split, held_out)
    indices: Sequence[int] = range(len(encoded))
    if own is None:
        names = [f"{chosen}/{i}" for i in indices]
        indices = indices_of_split(names, held_out, split)
    return HFRecords(encoded, columns, chosen, indices)


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

    def __init__(self, rows: Any, columns: Columns, split: str, indices: Sequence[int]) -> None:
        self.classes: Sequence[str] = columns.classes
        self._rows, self._columns, self._split, self._indices = rows, columns, split, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        row = self._indices[index]
        with _reading(self._split):
            return self._columns.record(f"{self._split}/{row}", self._rows[row])

    def captions(self) -> Sequence[tuple[str, ...]]:
        with _reading(self._split):
            texts = self._rows.select_columns(list(self._columns.captions)).with_format(None)
            chosen = texts if len(self) == len(texts) else texts.select(self._indices)
            return [self._columns.describe(row)[0] for row in chosen]


class HFShards:
    """A streaming data set: its own shards, each read from front to back."""

    def __init__(
        self, rows: Any, columns: Columns, name: str, split: Split, held_out: float
    ) -> None:
        self.classes: Sequence[str] = columns.classes
        self._rows, self._columns, self._name = rows, columns, name
        self._split, self._held_out = split, held_out

    def __len__(self) -> int:
        return int(self._rows.num_shards)

    def read(self, shard: int, skip: int) -> Iterator[tuple[int, Record]]:
        with _reading(f"{self._name}, shard {shard}"):
            rows = self._rows.shard(num_shards=len(self), index=shard).skip(skip)
            for place, row in enumerate(rows, start=skip):
                name = f"{self._name}/{shard}/{place}"
                if not self._held_out or split_by_name(name, self._held_out) == self._split:
                    yield place, self._columns.record(name, row)


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Whatever goes wrong inside, in any of many libraries below, is a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"data.path: can't read the split {what}: {reason}; see that its files are there and "
            f"whole"
        ) from None


def _datasets() -> Any:
    return optional("datasets", "hf", "data.source=hf")


def _open(path: str | None, subset: str | None, streaming: bool) -> tuple[str, dict[str, Any]]:
    """What is read, and its splits by name."""
    if path is None:
        raise UserError(
            "data.path: missing; name a data set of the Hugging Face hub, or a local folder or file"
        )
    datasets = _datasets()
    local = _local(path)
    try:
        if local is not None and _saved(local):
            found = datasets.load_from_disk(str(local))
        elif local is not None and local.suffix in KINDS:
            kind, files = KINDS[local.suffix], {"train": str(local)}
            found = datasets.load_dataset(kind, data_files=files, streaming=streaming)
        else:
            found = datasets.load_dataset(str(local or path), subset, streaming=streaming)
    except Exception as error:  # any of many libraries below may have raised it
        raise UserError(_why_not(path, local, error)) from None
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    if streaming and local is not None and _saved(local):
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


def _saved(folder: Path) -> bool:
    return any((folder / f).is_file() for f in ("dataset_dict.json", "state.json"))


def _why_not(path: str, local: Path | None, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if local is not None:
        return f"data.path={path}: can't read {local} as a data set: {reason}"
    return (
        f"data.path={path}: no such folder here, and the Hugging Face hub doesn't give it: "
        f"{reason}; correct the path, set it to a local copy, or fetch it once with a network (it "
        f"stays in $HF_HOME, and HF_HUB_OFFLINE=1 then keeps from asking)"
    )


def _columns(
    name: str,
    features: Mapping[str, Any] | None,
    image_key: str | None,
    caption_key: str | Sequence[str] | None,
    templates: Sequence[str] | None,
) -> Columns:
    """The columns named, or those that can only be meant."""
    datasets = _datasets()

    if features is None:
        raise UserError(f"data.path={name}: a stream without types; set data.streaming=false")
    there = ", ".join(features)
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    image = image_key or (images[0] if images else None)
    if image is None or image not in features:
        raise UserError(f"data.image_key={image}: {name} has the columns {there}; name one of them")
    keys = _caption_keys(name, features, image, caption_key)
    kinds = [features[key] for key in keys]
    labels = [kind for kind in kinds if isinstance(kind, datasets.ClassLabel)]
    if not labels:
        no_templates(templates, f"the texts in {', '.join(keys)}")
        return Columns(image, keys)
    if len(keys) > 1:
        raise UserError(
            f"data.caption_key={list(keys)}: classes and texts don't mix; name one column of "
            f"classes, or texts only"
        )
    names = tuple(labels[0].names)
    chosen = TEMPLATES if templates is None else templates
    return Columns(image, keys, names, tuple(from_template(n, chosen) for n in names))


def _caption_keys(
    name: str,
    features: Mapping[str, Any],
    image: str,
    caption_key: str | Sequence[str] | None,
) -> tuple[str, ...]:
    there = ", ".join(key for key in features if key != image) or "no other column"
    if caption_key is None:
        usual = [key for key in CAPTION_KEYS if key in features]
        if not usual:
            raise UserError(
                f"data.caption_key: {name} has {there}, and which holds the captions is not "
                f"plain; name it"
            )
        return (usual[0],)
    keys = (caption_key,) if isinstance(caption_key, str) else tuple(caption_key)
    for key in keys:
        if key not in features:
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
        return b""  # which no decoder takes, so that it counts as a bad one
    raise UserError(
        f"data.image_key: the column holds {type(picture).__name__}, not pictures; name another"
    )
