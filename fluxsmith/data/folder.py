"""A folder of images with captions as people keep them: in a table, in texts beside the images, or
as the names of folders and files. Where it isn't plain which is meant, nothing is guessed."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, get_args

from fluxsmith.data.account import Account, some
from fluxsmith.data.captions import (
    LABEL_KEYS,
    MISSING,
    Captioner,
    Described,
    pick_captions,
    pick_column,
    value_at,
)
from fluxsmith.data.listing import ImageIndex, Listing, Texts, list_folder
from fluxsmith.data.pictures import endings
from fluxsmith.data.records import (
    CaptionSettings,
    InMemory,
    Record,
    Split,
    WholeText,
    digest_of,
    path_of,
    reason,
    size_of,
)
from fluxsmith.data.splits import FolderSplits, own_test, split_in_name
from fluxsmith.data.tables import Table, read_table, read_text
from fluxsmith.errors import UserError

IMAGE_KEYS = (
    "file_name", "filename", "file", "image", "image_path", "image_file", "image_name", "img",
    "path", "file_path", "name",
)  # fmt: skip

ARCHIVES = (".zip", ".rar", ".7z", ".gz")
Kind = Literal["metadata", "sidecar", "class", "name", "none"]
# Which kinds of captions a key is for.
USES = {
    "image_key": ("metadata",),
    "caption_key": ("metadata", "sidecar"),
    "class_names": ("metadata", "sidecar"),
    "whole_text": ("sidecar",),
}


class FolderRecords(list[Record]):
    """The images of a folder that belong to a split, in the order of their names."""

    def __init__(self, records: Iterable[Record], classes: Sequence[str], account: Account) -> None:
        super().__init__(records)
        self.classes, self.account = classes, account

    def captions(self) -> Sequence[tuple[str, ...]]:
        return [record.captions for record in self]

    def digest(self) -> str:
        files = ((r, r.picture) for r in self if isinstance(r.picture, Path))
        return digest_of((r.name, size_of(file), r.captions) for r, file in files)


@dataclass(frozen=True)
class Settings(CaptionSettings):
    captions: Annotated[
        Kind | None,
        "Where they are: metadata, sidecar, class, name (of the file) or none; told by itself "
        "where it is plain.",
    ] = None
    whole_text: WholeText = False
    in_memory: InMemory = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.captions is not None and self.caption is not None:
            raise ValueError(
                f"captions={self.captions}: data.caption={self.caption!r} is the caption of all "
                f"images; remove one of the keys"
            )
        if self.captions == "none":
            replace(self, captions=None, caption="")  # refuses what captions are needed for


def load(settings: Settings, split: Split) -> FolderRecords:
    """The images in and below a folder.

    The test images are those in a folder called test or validation, or in a table called so;
    without one, a share of all, chosen by name. A UserError says what is missing or not plain.
    """
    path = path_of(settings)
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is no folder" if root.exists() else "there is no such folder"
        raise UserError(f"data.path={path}: {what}; correct it{_other_source(root)}")
    there = list_folder(root)
    if not there.images:
        passed = "".join(f"; {line}" for line in there.account.lines())
        names = [*there.texts, *(name for found in there.account.passed.values() for name in found)]
        hint = next(filter(None, map(_other_source, map(Path, names))), "")
        raise UserError(f"data.path={path}: no images in it or below; add some{hint}{passed}")
    sides = FolderSplits(there, settings.test_share, settings.captions == "class")
    texts = Texts(there)
    kind = _kind(there, sides, texts, settings)
    _check_uses(kind, texts, settings)
    caption = settings.caption or "" if kind == "none" else None
    if kind == "metadata":
        captioner = Captioner(settings)
        records = list(_from_tables(there, sides, texts, settings, captioner))
    else:
        classes = _classes(there, sides) if kind == "class" else []
        captioner = Captioner(settings, classes, caption)
        records = list(_from_files(there, sides, texts, kind, captioner))
    return FolderRecords(sides.of(split, records), captioner.classes, there.account)


def _other_source(file: Path) -> str:
    if file.suffix in (".parquet", ".arrow"):
        return ", or set data.source=hf"
    if ".tar" in file.suffixes:
        return ", or set data.source=webdataset"
    return f"; unpack {file.name}" if file.suffix.lower() in ARCHIVES else ""


def _kind(there: Listing, sides: FolderSplits, texts: Texts, settings: Settings) -> Kind:
    """Where captions are, as the settings say, or as is plain from what is there."""
    if settings.caption is not None:
        return "none"
    if settings.captions is not None:
        return settings.captions
    root, ask = there.root, f"set data.captions to {' or '.join(get_args(Kind))}"
    if texts.tables and texts.beside:
        beside = some([text for found in texts.beside.values() for text in found])
        raise UserError(
            f"{root}: captions may be in {some(texts.tables)} or in texts beside the images, such "
            f"as {beside}; set data.captions=metadata or sidecar"
        )
    if texts.tables:
        return "metadata"
    if texts.beside:
        return "sidecar"
    if texts.others:
        raise UserError(
            f"{root}: {some(texts.others)} would lie unused, for no image is called so; name texts "
            f"like their images, write metadata.jsonl, or {ask}"
        )
    below = [sides.below(name) for name in there.images]
    classes = sorted(set(map(_class_of, below)))
    if "" in classes:
        loose = [name for name in below if not _class_of(name)]
        raise UserError(
            f"{root}: no captions for its {len(loose):,} images, such as {loose[0]}; add "
            f"metadata.jsonl with file_name and text, or name.txt beside name.png, or a folder for "
            f"each class; or set data.caption=TEXT, one for all, or data.captions=name or none"
        )
    if len(classes) == 1:
        raise UserError(
            f"{root}: all images lie in one folder, {classes[0]}, and have no captions; add texts, "
            f"set data.caption, one for all, or {ask}"
        )
    if all(re.match(r"\d+_", name) for name in classes):
        raise UserError(
            f"{root}: the folders {some(classes)} may mean repeats and a caption, as other "
            f"trainers write it, or classes; set data.captions=class, or name each in "
            f"data.path={{FOLDER: REPEATS}}, with data.caption or texts"
        )
    there.account.notes.append(f"captions are made of the names of folders: {some(classes)}")
    return "class"


def _check_uses(kind: Kind, texts: Texts, settings: Settings) -> None:
    """Refuses what is asked for and not there, and keys that would be ignored."""
    if (kind == "metadata" and not texts.tables) or (kind == "sidecar" and not texts.beside):
        what = "table" if kind == "metadata" else "text beside an image"
        raise UserError(f"data.captions={kind}: there is no {what} in {settings.path}; add some")
    for key, kinds in USES.items():  # earlier versions wrote caption_key: text everywhere
        value = getattr(settings, key)
        no_json = key == "caption_key" and kind == "sidecar" and not texts.has_json
        if value not in (None, False, "text") and (kind not in kinds or no_json):
            raise UserError(
                f"data.{key}={value}: is for captions in {' or '.join(kinds)}, and here they come "
                f"from {kind}{' without json files' if no_json else ''}; remove the key"
            )


def _from_files(
    there: Listing, sides: FolderSplits, texts: Texts, kind: Kind, captioner: Captioner
) -> Iterator[Record]:
    """Every image with its captions, where no table has them."""
    for name in there.images:
        if kind == "sidecar":
            found = _beside(there.root, texts.beside.get(name, ()), captioner)
        elif kind == "class":
            own = _class_of(sides.below(name))
            outside = Described(fault="it lies in no folder of a class")
            found = captioner.describe(own) if own else outside
        elif kind == "name":
            found = captioner.describe(PurePosixPath(name).stem.replace("_", " "))
        else:
            found = captioner.describe()
        yield Record(name, there.root / name, *found)
    if captioner.of_lines:
        there.account.notes.append(
            f"{captioner.of_lines:,} texts have several lines, and each line is a caption of its "
            f"own; data.whole_text=true makes a text one caption"
        )
    for text in (*texts.others, *texts.tables):
        there.account.pass_over("text that belongs to no image", text)


def _classes(there: Listing, sides: FolderSplits) -> list[str]:
    """Those of the training images; a UserError for one that is tested on only."""
    of = {split: set[str]() for split in ("train", "test")}
    for name in there.images:
        if own := _class_of(sides.below(name)):
            of.get(sides.side(name), set()).add(own)
    if unknown := sorted(of["test"] - of["train"]):
        raise UserError(f"{there.root}: the class {unknown[0]} is in {sides.test}/ only; move it")
    if not of["train"]:
        raise UserError(
            f"data.captions=class: no image of {there.root} lies in a folder of a class"
        )
    return sorted(of["train"])


def _class_of(below: str) -> str:
    return below.partition("/")[0] if "/" in below else ""


def _beside(root: Path, names: Sequence[str], captioner: Captioner) -> Described:
    """The captions in all the texts beside an image, or the first reason why there are none."""
    found = []
    for name in names:
        try:
            text = read_text(root / name)
            if name.lower().endswith(".json"):
                row = json.loads(text)
                found.append(captioner.of_row(row if isinstance(row, dict) else {}, name))
            else:
                found.append(captioner.of_text(text))
        except (OSError, ValueError) as error:
            found.append(Described(fault=f"can't read {name}: {reason(error)}; save it as UTF-8"))
    good = [one for one in found if one.captions]
    if not good:
        return next((one for one in found if one.fault), Described())
    return Described(tuple(dict.fromkeys(c for one in good for c in one.captions)), good[0].label)


def _from_tables(
    there: Listing, sides: FolderSplits, texts: Texts, settings: Settings, captioner: Captioner
) -> Iterator[Record]:
    """A record for each image that tables name, with the captions of all its rows, and one for
    each row that can't be used."""
    index, root = ImageIndex(there.images), there.root
    values: dict[str, list[Any]] = {}  # by the name of an image
    named = set[str]()
    for name in texts.tables:
        table, folder = read_table(root / name, name), PurePosixPath(name).parent
        image_key, keys = _columns(table, settings)
        there.account.notes.append(
            f"captions are read from {name}: {', '.join(keys)} of the image in {image_key}"
        )
        for row in table.rows:
            given = row.values.get(image_key)
            held = [_number(key, value_at(row.values, key)) for key in keys]
            if not isinstance(given, str) or not given.strip():
                fault = f"it has no {image_key}"
                if isinstance(given, (bytes, dict)):
                    fault = f"its {image_key} is no name of a file; set data.source=hf"
                yield Record(row.where, b"", (), fault=row.fault or fault)
                continue
            images = index.find(folder, given)
            image = images[0] if len(images) == 1 else str(folder / given)
            named.add(image)
            word = split_in_name(PurePosixPath(name).stem) or row.values.get("split")
            if word and not own_test([sides.tables.get(image, "")]):  # testing goes before training
                sides.tables[image] = str(word)
            fault = row.fault or ("" if MISSING not in held else f"it has no {', '.join(keys)}")
            if len(images) > 1:
                fault = f"it may be {' or '.join(images[:3])}; write its folder too"
            if fault:
                yield Record(f"{row.where} ({given})", b"", (), fault=fault)
            else:
                values.setdefault(image, []).extend(held)
    for image, found in values.items():
        yield Record(image, root / image, *captioner.describe(*found))
    for image in there.images:
        if image not in named:
            there.account.pass_over(f"no row in {some(texts.tables)}", image)
    for text in (*texts.others, *(t for found in texts.beside.values() for t in found)):
        there.account.pass_over("text beside a table", text)


def _number(key: str, value: Any) -> Any:
    """The number of a class, which tables of text hold as digits."""
    if key.lower() in LABEL_KEYS and isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return value


def _columns(table: Table, settings: Settings) -> tuple[str, tuple[str, ...]]:
    """The columns of the images and of the captions; a UserError where they aren't plain."""
    if not table.rows:
        raise UserError(f"{table.name} names no images; write a line for each")
    if not table.columns:
        raise UserError(f"{table.rows[0].where}: {table.rows[0].fault}")
    try:
        return _find_columns(table, settings)
    except UserError as error:
        if settings.captions is not None:
            raise
        raise UserError(f"{error}, or set data.captions if captions are elsewhere") from None


def _find_columns(table: Table, settings: Settings) -> tuple[str, tuple[str, ...]]:
    name = table.name
    if name.lower().endswith(".txt") or any(
        PurePosixPath(column).suffix.lower() in endings() for column in table.columns
    ):
        name += ", whose first line must name the columns,"
    image_key = pick_column("image_key", settings.image_key, IMAGE_KEYS, table.columns, name)
    others = [column for column in table.columns if column != image_key]
    return image_key, pick_captions(settings, others, name)
