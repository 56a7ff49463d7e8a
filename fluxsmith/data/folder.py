"""A folder of images with captions as people keep them: in a table, in texts beside the images, or
as the names of folders and files. Where it isn't plain which is meant, nothing is guessed."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, get_args

from fluxsmith.data.account import Account, some
from fluxsmith.data.captions import Captioner, Described, composed
from fluxsmith.data.fingerprints import digest_of, fingerprints
from fluxsmith.data.folder_tables import from_tables
from fluxsmith.data.listing import Listing, Texts, list_folder
from fluxsmith.data.records import (
    CaptionSettings,
    InMemory,
    Record,
    Split,
    WholeText,
    path_of,
    reason,
)
from fluxsmith.data.splits import FolderSplits, split_in_name
from fluxsmith.data.tables import read_text
from fluxsmith.errors import UserError

REPEATS = r"\d+_[^/]*/"  # a folder's name as other trainers write repeats and a caption
ARCHIVES = (".zip", ".rar", ".7z", ".gz")
Kind = Literal["metadata", "sidecar", "class", "name", "none"]
# Which kinds of captions a key is for.
USES = {
    "image_key": ("metadata",),
    "reference_key": ("metadata",),
    "caption_key": ("metadata", "sidecar"),
    "class_names": ("metadata", "sidecar"),
    "whole_text": ("sidecar",),
}


class FolderRecords(list[Record]):
    """The images of a folder that belong to a split, in the order of their names."""

    def __init__(
        self, records: Iterable[Record], classes: Sequence[str], account: Account, workers: int
    ) -> None:
        super().__init__(records)
        self.classes, self.account, self.workers = classes, account, workers

    def captions(self) -> Sequence[tuple[str, ...]]:
        return [record.captions for record in self]

    def digest(self) -> str:
        known = [r for r in self if isinstance(r.picture, Path)]  # not rows that can't be used
        pairs = ([r.picture] if r.reference is None else [r.picture, r.reference] for r in known)
        files = [it for pair in pairs for it in pair if isinstance(it, Path)]
        contents = fingerprints(files, self.workers)
        return digest_of(
            (r.name, *islice(contents, 1 if r.reference is None else 2), r.captions) for r in known
        )


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
        missing = "there is no such folder; correct it"
        what = "is no folder; name the one that it lies in" if root.exists() else missing
        raise UserError(f"data.path={path}: {what}{_other_source(root)}")
    there = list_folder(root)
    if not there.images:
        passed = "".join(f"; {line}" for line in there.account.lines())
        names = [*there.texts, *(name for found in there.account.passed.values() for name in found)]
        names.sort(key=lambda name: ".tar" not in name)  # tables beside shards only tell of them
        hint = next(filter(None, map(_other_source, map(Path, names))), "")
        raise UserError(f"data.path={path}: no images in it or below; add some{hint}{passed}")
    sides = FolderSplits(there, settings.test_share, settings.captions == "class")
    texts = Texts(there)
    kind = _kind(there, sides, texts, settings)
    _check_uses(kind, texts, settings)
    caption = settings.caption or "" if kind == "none" else None
    if kind == "metadata":
        captioner = Captioner(settings)
        said = settings.captions is not None
        records = list(from_tables(there, sides, texts, captioner, said))
    else:
        classes = _classes(there, sides) if kind == "class" else []
        captioner = Captioner(settings, classes, caption)
        records = list(_from_files(there, sides, texts, kind, captioner))
    return FolderRecords(
        sides.of(split, records), captioner.classes, there.account, settings.workers
    )


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
    if texts.unread:
        raise UserError(
            f"{root}: {some(texts.unread)} would lie unused, for texts beside images are read as "
            f".txt, .caption or .json; rename them, or {ask}"
        )
    used = [name for name in there.images if sides.side(name) in ("train", "test")]
    _expect_classes(there, list(map(sides.below, used)), ask)
    return "class"


def _expect_classes(there: Listing, below: list[str], ask: str) -> None:
    """Raises a UserError where folders are not plainly classes; `below` are the names of images
    without the folders of splits, and `ask` how to say what is meant."""
    root, classes = there.root, sorted(set(map(_class_of, below)))
    if "" in classes:
        loose = [name for name in below if not _class_of(name)]
        raise UserError(
            f"{root}: no captions for its {len(loose):,} images, such as {loose[0]}; add "
            f"metadata.jsonl with file_name and text, or name.txt beside name.png, or a folder for "
            f"each class; or set data.caption=TEXT, one for all, or data.captions=name or none"
            + "".join(f"; {line}" for line in there.account.lines())
        )
    deeper = [name for name in below if name.count("/") > 1]
    if len(classes) == 1:
        inside = f"; if its folders are classes, set data.path={root / classes[0]}" * bool(deeper)
        raise UserError(
            f"{root}: all images lie in one folder, {classes[0]}, and have no captions; add texts, "
            f"set data.caption, one for all, or {ask}{inside}"
        )
    if splits := [name for name in classes if split_in_name(name)]:
        raise UserError(
            f"{root}: the folders {some(splits)} may be splits or classes; name them train and "
            f"test, or set data.captions=class"
        )
    if all(re.match(REPEATS, f"{name}/") for name in classes):
        raise UserError(
            f"{root}: the folders {some(classes)} may mean repeats and a caption, as other "
            f"trainers write it, or classes; set data.captions=class, or name each in "
            f"data.path={{FOLDER: REPEATS}}, with data.caption or texts"
        )
    inner = f"; folders inside them say nothing, such as {deeper[0]}" if deeper else ""
    there.account.note(f"captions are made of the names of folders: {some(classes)}{inner}")


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
    several: Sequence[str] = ()  # texts of the first image that has more than one
    for name in there.images:
        if kind == "sidecar":
            beside = texts.beside.get(name, ())
            found = _beside(there.root, beside, captioner, there.account)
            several = several or (beside if len(beside) > 1 else ())
        elif kind == "class":
            own = _class_of(sides.below(name))
            outside = Described(fault="it lies in no folder of a class")
            found = captioner.describe(own) if own else outside
        elif kind == "name":
            found = captioner.describe(PurePosixPath(name).stem.replace("_", " "))
        else:
            found = captioner.describe()
        yield Record(name, there.root / name, *found)
    for text in (*texts.others, *texts.tables):
        there.account.pass_over("text that belongs to no image", text)
    for text in (t for found in texts.beside.values() for t in found if kind != "sidecar"):
        there.account.pass_over("text beside an image, not used", text)
    if several:
        there.account.note(
            f"images have several texts, such as {some([*several])}, and each is a caption of its "
            f"own; move away those that are none"
        )
    repeats = sorted({name.split("/")[0] for name in there.images if re.match(REPEATS, name)})
    if repeats and kind != "class":
        there.account.note(
            f"the numbers before {some(repeats)} repeat nothing; data.path={{FOLDER: REPEATS}} does"
        )


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
    return composed(below.partition("/")[0]) if "/" in below else ""


def _beside(root: Path, names: Sequence[str], captioner: Captioner, account: Account) -> Described:
    """The captions in all the texts beside an image, or the first reason why there are none."""
    found = []
    for name in names:
        try:
            text = read_text(root / name)
            is_json = name.lower().endswith(".json")
            found.append(
                captioner.of_json(text, name, account)
                if is_json
                else captioner.of_text(text, account)
            )
        except (OSError, ValueError) as error:
            fault = f"can't read {name}: {reason(error)}; mend it, or save it as UTF-8"
            found.append(Described(fault=fault))
    good = [one for one in found if one.captions]
    if not good:
        return next((one for one in found if one.fault), Described())
    return Described(tuple(dict.fromkeys(c for one in good for c in one.captions)), good[0].label)
