"""Tables of images and their captions, in any of the formats that people keep them in."""

import codecs
import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxsmith.errors import UserError
from fluxsmith.optional import optional

IMAGE_KEYS = (
    "file_name", "filename", "file", "image", "image_path", "image_file", "image_name", "img",
    "path", "file_path", "name",
)  # fmt: skip
MISSING_WORDS = {"nan", "NaN", "NULL", "null", "None", "<NA>", "#N/A"}  # a csv's empty fields
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".json", ".parquet")
SEPARATORS = ",;\t|"
csv.field_size_limit(sys.maxsize)  # a caption that is too long is a caption that is too long
NOT_AN_OBJECT = "must be a JSON object with the name of an image and its caption"


@dataclass(frozen=True)
class Row:
    where: str  # such as metadata.csv, line 3
    values: Mapping[str, Any]
    fault: str = ""  # why it can't be used


@dataclass(frozen=True)
class Table:
    name: str
    columns: tuple[str, ...]
    rows: list[Row]


def read_table(file: Path, name: str) -> Table:
    """The rows of a file, which is called `name` in messages. A UserError where it can't be read;
    a row that can't be used says why."""
    try:
        if file.suffix.lower() == ".parquet":
            parquet = optional("pyarrow.parquet", "hf", f"reading {name}")
            values = parquet.read_table(file).to_pylist()
            rows = [Row(f"{name}, row {i}", row) for i, row in enumerate(values)]
        elif file.suffix.lower() in (".csv", ".tsv", ".txt"):
            text = read_text(file).replace("\r\n", "\n").replace("\r", "\n")
            rows = list(_csv_rows(text, name))
        elif file.suffix.lower() in TABLES:
            rows = list(_json_rows(read_text(file), name, file.suffix.lower() == ".json"))
        else:
            raise UserError(
                f"{name}: metadata in none of the formats that are read; name it metadata with one "
                f"of {', '.join(TABLES)}"
            )
    except UserError:
        raise
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"can't read {file}, line {line}: {error}; save it as UTF-8") from None
    except Exception as error:  # of the file system, of a codec, of parquet's library
        raise UserError(f"can't read {file}: {error}; mend it or save it as UTF-8") from None
    return Table(name, tuple(dict.fromkeys(key for row in rows for key in row.values)), rows)


def read_text(file: Path) -> str:
    """UTF-8, or UTF-16 where the file says so; a UnicodeError for what is neither."""
    return decode_text(file.read_bytes())


def decode_text(data: bytes) -> str:
    """The same for bytes."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if utf16 else "utf-8-sig")
    if "\0" in text:
        raise ValueError("it holds zero bytes, as UTF-16 or UTF-32 do, or what is no text")
    return text


def _csv_rows(text: str, name: str) -> Iterator[Row]:
    told = re.match(r"sep=(.)(?=\n)", text)  # as Excel says it
    text = text[told.end() :] if told else text
    # Else it is the one that cuts the header into the most columns. csv.Sniffer, which looks at the
    # rows too, is misled by the commas of captions.
    first = text.lstrip().partition("\n")[0]
    separator = told[1] if told else max(SEPARATORS, key=lambda one: len(_fields(first, one)))
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
    header: list[str] = []
    while True:
        where = f"{name}, line {reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:  # a quote that is not closed, or closed too soon
            if "end of data" in str(error):
                raise UserError(f"{where}: a quote opens here and is never closed") from None
            yield Row(where, {}, f"{error}; mend the quotes")
            continue
        if fields is None:
            return
        if not any(fields):
            continue
        if not header:
            header = _header(fields, name)
            continue
        there = len(fields) if any(fields[len(header) :]) else min(len(fields), len(header))
        fault = (
            f"it has {there} fields and the header has {len(header)}; put a text that holds a "
            f"{separator!r} in quotes"
            if there > len(header)
            else ""
        )
        known = ("" if field in MISSING_WORDS else field for field in fields)
        yield Row(where, dict(zip(header, known, strict=False)), fault)


def _fields(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator), [])


def _header(fields: list[str], name: str) -> list[str]:
    """The names of the columns, without empty ones at the end; a UserError for two of one name."""
    found = [field.strip() for field in fields]
    while not found[-1]:
        found.pop()
    if twice := [column for column in found if column and found.count(column) > 1]:
        raise UserError(f"{name}: two of its columns are called {twice[0]}; rename one of them")
    return found


def _json_rows(text: str, name: str, whole: bool) -> Iterator[Row]:
    """Of JSON lines, an array, an object by the names of images, or COCO's captions; in a file
    that should be `whole` JSON, lines are read as well."""
    if whole or text.lstrip().startswith("["):
        try:
            yield from _json_array(json.loads(text), name)
            return
        except ValueError as error:
            if text.lstrip().startswith("["):
                raise UserError(f"{name}: {error}; mend it") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line.rstrip().removesuffix(","))  # as of an array without brackets
        except ValueError:
            found = None
        good = isinstance(found, dict)
        yield Row(f"{name}, line {number}", found if good else {}, "" if good else NOT_AN_OBJECT)


def _json_array(found: Any, name: str) -> Iterator[Row]:
    if isinstance(found, dict) and {"images", "annotations"} <= found.keys():  # as COCO has them
        files = {image["id"]: image["file_name"] for image in found["images"]}
        found = [
            {"file_name": files.get(one.get("image_id")), "text": one.get("caption")}
            for one in found["annotations"]
        ]
    elif isinstance(found, dict):
        lists = [v for v in found.values() if isinstance(v, list) and v and _names_image(v[0])]
        columns = [_column(value) for value in found.values()]
        if len(lists) == 1:  # rows under a key, such as data
            (found,) = lists
        elif _names_image(found) and all(columns):  # a list for each column, or pandas' numbers
            found = [dict(zip(found, row, strict=True)) for row in zip(*columns, strict=True)]
        else:
            found = [
                {"file_name": key, **(value if isinstance(value, dict) else {"text": value})}
                for key, value in found.items()
            ]
    for i, one in enumerate(found):
        good = isinstance(one, dict)
        yield Row(f"{name}, entry {i}", one if good else {}, "" if good else NOT_AN_OBJECT)


def _names_image(one: Any) -> bool:
    return isinstance(one, dict) and any(str(key).lower() in IMAGE_KEYS for key in one)


def _column(value: Any) -> list[Any]:
    """The values of a column; none where it isn't one."""
    return (
        list(value.values() if isinstance(value, dict) else value)
        if isinstance(value, (dict, list))
        else []
    )
