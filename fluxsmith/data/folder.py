"""A folder of images with captions as people keep them: a metadata file, a text file beside each
image, or a folder for each class."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from fluxsmith.data.captions import TEMPLATES, from_template, no_templates
from fluxsmith.data.pictures import ENDINGS
from fluxsmith.data.records import (
    FileSettings,
    InMemory,
    Record,
    Split,
    Templates,
    indices_of_split,
    path_of,
)
from fluxsmith.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")


class FolderRecords(list[Record]):
    """The images of a folder that belong to a split, in the order of their names."""

    def __init__(self, classes: Sequence[str], records: Iterable[Record]) -> None:
        super().__init__(records)
        self.classes = classes

    def captions(self) -> Sequence[tuple[str, ...]]:
        return [record.captions for record in self]


@dataclass(frozen=True)
class Settings(FileSettings):
    caption_key: Annotated[str, "Key of the captions in a metadata file."] = "text"
    templates: Templates = None
    in_memory: InMemory = "auto"


def load(settings: Settings, split: Split) -> FolderRecords:
    """The images in and below a folder.

    The test images are those in its folder `test`; without one, a share of all, chosen by name.
    A UserError says what is missing.
    """
    path = path_of(settings)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path={path}: there is no such folder; correct it")
    test = root / "test"
    train = root / "train" if (root / "train").is_dir() and test.is_dir() else root
    if not test.is_dir():
        classes, records = _read(root, root, settings)
        chosen = indices_of_split([record.name for record in records], settings.test_share, split)
        return FolderRecords(classes, (records[i] for i in chosen))
    classes, records = _read(train, root, settings, without=test)
    if split == "train":
        return FolderRecords(classes, records)
    own, records = _read(test, root, settings)
    if unknown := sorted(set(own) - set(classes)):
        raise UserError(f"data.path={path}: the class {unknown[0]} is in test/ only; move it")
    place = [classes.index(name) for name in own]  # test/ may lack some of the classes
    return FolderRecords(
        classes, (r if r.label is None else replace(r, label=place[r.label]) for r in records)
    )


def _read(
    folder: Path, root: Path, settings: Settings, without: Path | None = None
) -> tuple[Sequence[str], list[Record]]:
    """The classes, if there are any, and the records; names are relative to `root`."""
    images = sorted(_images(folder, without))
    if not images:
        raise UserError(
            f"{folder}: no images in it or below; they are known by their endings: "
            f"{', '.join(ENDINGS)}"
        )
    caption_key, templates = settings.caption_key, settings.templates
    metadata = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise UserError(f"{folder}: both {' and '.join(METADATA)} are there; keep one of them")
    if metadata:
        no_templates(templates, f"the texts in {metadata[0].name}")
        return (), _from_metadata(metadata[0], root, caption_key)
    if caption_key != "text":
        raise UserError(
            f"data.caption_key={caption_key}: is for a metadata file, and {folder} has none; add "
            f"metadata.jsonl or remove the key"
        )
    if any(image.with_suffix(".txt").is_file() for image in images):
        no_templates(templates, "the texts beside the images")
        return (), [Record(_name(i, root), i, _beside(i.with_suffix(".txt"))) for i in images]
    return _from_classes(images, folder, root, TEMPLATES if templates is None else templates)


def _images(folder: Path, without: Path | None) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or (without is not None and path.is_relative_to(without)):
            continue
        if path.suffix.lower().lstrip(".") in ENDINGS and path.is_file():
            yield path


def _name(image: Path, root: Path) -> str:
    return image.relative_to(root).as_posix()


def _beside(file: Path) -> tuple[str, ...]:
    """One caption a line; none where the file is missing or empty."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read {file}: {error}; save it as UTF-8") from None
    return captions_by_line(text)


def captions_by_line(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _from_classes(
    images: Sequence[Path], folder: Path, root: Path, templates: Sequence[str]
) -> tuple[Sequence[str], list[Record]]:
    loose = [image for image in images if image.parent == folder]
    if loose:
        raise UserError(
            f"{folder}: no captions for its {len(loose):,} images, such as {loose[0].name}; add "
            f"metadata.jsonl or metadata.csv with file_name and text, or name.txt beside name.png, "
            f"or put the images into a folder for each class"
        )
    of = [image.relative_to(folder).parts[0] for image in images]
    classes = sorted(set(of))
    ways = {name: from_template(name, templates) for name in classes}
    return classes, [
        Record(_name(image, root), image, ways[name], classes.index(name))
        for image, name in zip(images, of, strict=True)
    ]


def _from_metadata(file: Path, root: Path, caption_key: str) -> list[Record]:
    records = []
    for line, row in _rows(file):
        where = f"{file}, line {line}"
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise UserError(f"{where}: no file_name; name the image, relative to this file")
        if caption_key not in row:
            others = ", ".join(str(key) for key in row if key != "file_name") or "nothing else"
            raise UserError(
                f"{where}: no {caption_key}; there is {others}: set data.caption_key to the one "
                f"that holds the caption"
            )
        image = file.parent / name
        inside = image.is_relative_to(root)
        records.append(
            Record(_name(image, root) if inside else name, image, as_captions(row[caption_key]))
        )
    if not records:
        raise UserError(f"{file} names no images; write a line for each")
    return records


def as_captions(value: Any) -> tuple[str, ...]:
    """A text or a list of texts as captions; none where there is no text. Unpaired surrogates,
    which JSON may hold, are replaced: no encoder takes them."""
    values = value if isinstance(value, (list, tuple)) else [value]
    texts = (text.encode("utf-8", "replace").decode() for text in values if isinstance(text, str))
    return tuple(text.strip() for text in texts if text.strip())


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a metadata file with their line numbers."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            if file.suffix == ".csv":
                reader = csv.DictReader(stream)
                for row in reader:
                    yield reader.line_num, row
                return
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, _json_row(file, number, line)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"can't read {file}: {error}; save it as UTF-8") from None


def _json_row(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise UserError(
            f"{file}, line {number}: must be a JSON object with file_name and a caption"
        )
    return row
