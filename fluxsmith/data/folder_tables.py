"""The images of a folder with the captions that tables in it give them."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from fluxsmith.data.account import some
from fluxsmith.data.captions import (
    MISSING,
    Captioner,
    labelled,
    pick_captions,
    pick_column,
    unused,
    usual,
    value_at,
)
from fluxsmith.data.listing import ImageIndex, Listing, Texts
from fluxsmith.data.pictures import endings
from fluxsmith.data.records import CaptionSettings, Record
from fluxsmith.data.splits import FolderSplits, own_test, split_in_name, split_word
from fluxsmith.data.tables import IMAGE_KEYS, Row, Table, read_table
from fluxsmith.errors import UserError


def from_tables(
    there: Listing, sides: FolderSplits, texts: Texts, captioner: Captioner, said: bool
) -> Iterator[Record]:
    """A record for each image that tables name, with the captions of all its rows, and one for
    each row that can't be used. `said` is whether the settings say that captions are in tables."""
    index, root = ImageIndex(there.images), there.root
    values: dict[str, list[Any]] = {}  # by the name of an image
    references: dict[str, str] = {}  # likewise
    reference_key = captioner.settings.reference_key
    named = set[str]()
    for name in texts.tables:
        table, folder = read_table(root / name, name), PurePosixPath(name).parent
        image_key, keys = _columns(table, captioner.settings, said)
        there.account.note(
            f"captions are read from {name}: {', '.join(keys)} of the image in {image_key}"
            f"{unused(table.columns, keys)}"
        )
        names = [_name_below(root, row, image_key) for row in table.rows]
        given_names = (given for given in names if isinstance(given, str))
        whole = index.find_moved(folder, given_names, root.absolute().name)
        renamed, moved = list[str](), dict[str, str]()
        for given, images in whole.items():
            if len(images) == 1:
                moved.setdefault(images[0], given)
        for row, given in zip(table.rows, names, strict=True):
            held = [labelled(key, value_at(row.values, key)) for key in keys]
            if not isinstance(given, str) or not given.strip():
                fault = f"it has no {image_key}"
                if given is not None and not isinstance(given, str):
                    fault = f"its {image_key} is {type(given).__name__}, not the name of a file"
                    fault += "; data.source=hf reads it" * isinstance(given, (bytes, dict))
                yield Record(row.where, b"", (), fault=row.fault or fault)
                continue
            web = "it is an address on the web; fetch the pictures first" if "://" in given else ""
            images, fault = index.find(folder, given), row.fault or web
            word = split_in_name(PurePosixPath(name).stem) or _split_of(row)
            if len(images) > 1:
                images = [one for one in images if word and sides.word(one) == word] or images
            if given in whole:
                images = whole[given]
                if len(images) == 1 and (before := moved[images[0]]) != given:
                    fault = f"{before} is the same image here"
            image = images[0] if len(images) == 1 else str(folder / given)
            ending = PurePosixPath(given).suffix.lower()
            if ending in endings() and ending != PurePosixPath(image).suffix.lower():
                renamed.append(f"{given} for {image}")
            named.add(image)
            if word and not own_test([sides.tables.get(image, "")]):  # testing goes before training
                sides.tables[image] = word
            fault = fault or ("" if MISSING not in held else f"it has no {', '.join(keys)}")
            if len(images) > 1:
                fault = f"it may be {' or '.join(images[:3])}; write its folder too"
            if reference_key is not None and not fault:
                before = _name_below(root, row, reference_key)
                found = index.find(folder, before) if isinstance(before, str) else []
                named.update(found)
                if len(found) != 1 or references.setdefault(image, found[0]) != found[0]:
                    fault = f"its {reference_key}, {before!r}, is not the one image it needs"
            if fault:
                bad = f"{row.where} ({given})"
                sides.rows[bad] = image
                yield Record(bad, b"", (), fault=fault)
            else:
                values.setdefault(image, []).extend(held)
        if renamed:
            there.account.note(
                f"{name} gives {len(renamed):,} images other endings: {some(renamed)}"
            )
        if moved:
            found_for = some([f"{image} for {given}" for image, given in moved.items()])
            there.account.note(f"{name} has paths of elsewhere, found by their ends: {found_for}")
    for image, told in values.items():
        reference = root / references[image] if image in references else None
        captions, label, fault = captioner.describe(*told)
        yield Record(image, root / image, captions, label, fault, reference)
    for image in there.images:
        if image not in named:
            there.account.pass_over(f"no row in {some(texts.tables)}", image)
    for text in (*texts.others, *(t for found in texts.beside.values() for t in found)):
        there.account.pass_over("text beside a table", text)


def _name_below(root: Path, row: Row, key: str) -> Any:
    """The name of an image as a row gives it; a number is one too, and a whole path that leads
    below the folder is one there. None where there is none."""
    given = value_at(row.values, key)
    if given is MISSING:
        return None
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    if isinstance(given, str) and given.startswith("file://"):
        given = unquote(given.removeprefix("file://"))
    if isinstance(given, str) and os.path.isabs(given):  # noqa: PTH117 (no path yet)
        for base in (root.absolute(), root.resolve()):
            if Path(given).is_relative_to(base):
                return Path(given).relative_to(base).as_posix()
    return given


def _split_of(row: Row) -> str:
    """The split that a column called so names, "" for none."""
    column = usual(("split",), row.values)
    return split_word(row.values[column[0]], row.where) if column else ""


def _columns(table: Table, settings: CaptionSettings, said: bool) -> tuple[str, tuple[str, ...]]:
    """The columns of the images and of the captions; a UserError where they aren't plain."""
    if not table.rows:
        raise UserError(f"{table.name} names no images; write a line for each")
    if not table.columns:
        raise UserError(f"{table.rows[0].where}: {table.rows[0].fault}")
    try:
        return _find_columns(table, settings)
    except UserError as error:
        if said:
            raise
        raise UserError(f"{error}, or set data.captions if captions are elsewhere") from None


def _find_columns(table: Table, settings: CaptionSettings) -> tuple[str, tuple[str, ...]]:
    name = table.name
    if name.lower().endswith(".txt") or any(
        PurePosixPath(column).suffix.lower() in endings() for column in table.columns
    ):
        name += ", whose first line must name the columns,"
    image_key = pick_column("image_key", settings.image_key, IMAGE_KEYS, table.columns, name)
    reference = settings.reference_key
    if reference is not None:
        pick_column("reference_key", reference, (), table.columns, name)
    others = [column for column in table.columns if column not in (image_key, reference)]
    return image_key, pick_captions(settings, others, name)
