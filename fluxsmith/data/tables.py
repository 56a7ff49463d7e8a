"""Tables of images and their captions, in any of the formats that people keep them in."""

import codecs
import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxsmith.errors import UserError
from fluxsmith.optional import optional

TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".json", ".parquet")
SEPARATORS = ",;\t|"
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
    except Exception as error:  # of the file system, of a codec, of parquet's library
        raise UserError(f"can't read {file}: {error}; mend it or save it as UTF-8") from None
    return Table(name, tuple(dict.fromkeys(key for row in rows for key in row.values)), rows)


def read_text(file: Path) -> str:
    """UTF-8, or UTF-16 where the file says so; a UnicodeError for what is neither."""
    return decode_text(file.read_bytes())


def decode_text(data: bytes) -> str:
    """The same for bytes."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig")


def _csv_rows(text: str, name: str) -> Iterator[Row]:
    # The separator is the one that cuts the header into the most columns. csv.Sniffer, which looks
    # at the rows too, is misled by the commas of captions.
    first = text.lstrip().partition("\n")[0]
    separator = max(SEPARATORS, key=lambda one: len(next(csv.reader([first], delimiter=one), ())))
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
    header: list[str] = []
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:  # a quote that is not closed, or closed too soon
            yield Row(f"{name}, line {reader.line_num}", {}, f"{error}; mend the quotes")
            continue
        if fields is None:
            return
        if not any(fields):
            continue
        if not header:
            header = [field.strip() for field in fields]
            while header and not header[-1]:
                header.pop()
            continue
        there = len(fields) if any(fields[len(header) :]) else min(len(fields), len(header))
        fault = (
            f"it has {there} fields and the header has {len(header)}; put a text that holds a "
            f"{separator!r} in quotes"
            if there > len(header)
            else ""
        )
        values = dict(zip(header, fields, strict=False))
        yield Row(f"{name}, line {reader.line_num}", values, fault)


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
            found = json.loads(line)
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
        found = [
            {"file_name": key, **(value if isinstance(value, dict) else {"text": value})}
            for key, value in found.items()
        ]
    for i, one in enumerate(found):
        good = isinstance(one, dict)
        yield Row(f"{name}, entry {i}", one if good else {}, "" if good else NOT_AN_OBJECT)
