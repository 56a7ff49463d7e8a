"""Tensors that take long to compute, kept by key: in memory, and on disk for later runs.

On disk there is a folder for each thing that they depend on. It holds safetensors files, each
written whole under a name of its own, so that several processes may fill one folder, and one that
is cut off leaves what it has written. In a file the tensors of all entries lie end to end, and its
metadata is their index, with a checksum of each. Files are mapped into memory, so the system keeps
what fits.
"""

import contextlib
import json
import logging
import math
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.storage.files import make_folder, write_text
from fluxsmith.storage.tensor_files import write_tensors

MEMORY_BYTES = 2 * 1024**3  # of entries that are not on disk; what was used least goes first
FILE_BYTES = 64 * 1024**2  # so much, or so many entries, make a file
FILE_ENTRIES = 4096
FORMAT = "fluxsmith-tensors/1"
ABOUT = "about.json"  # in each folder, for people: what its tensors depend on

Entry = Mapping[str, Tensor]  # by name; all entries of a folder have the same names and dtypes

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Place:
    """Where an entry lies on disk."""

    flat: Entry  # all that the file holds
    parts: Mapping[str, tuple[int, tuple[int, ...]]]  # where each tensor begins, and its shape
    checksum: int | None  # None once it was found right

    def entry(self) -> Entry | None:
        """None where it is not as it was written."""
        found = {
            name: self.flat[name][start : start + math.prod(shape)].view(shape)
            for name, (start, shape) in self.parts.items()
        }
        if self.checksum is not None and self.checksum != _checksum(found):
            return None
        self.checksum = None
        return found


class TensorCache:
    """Entries by key, in `folder`, whose name says what they depend on, or in memory alone (None).
    `about` says the same to people, and `setting` is the config's key that names the folder."""

    def __init__(self, folder: Path | None, about: Mapping[str, Any], setting: str) -> None:
        self.folder = folder
        self._about, self._setting = about, setting
        self._new: OrderedDict[str, Entry] = OrderedDict()  # what is not on disk
        self._bytes = 0  # of these
        self._notes: dict[str, Any] = {}
        # More than one where an entry was damaged and made again, or made by two processes.
        self._places: dict[str, list[Place]] = {}
        self._opened: set[Path] = set()
        self._failure: UserError | None = None  # of writing
        self.refresh()

    def refresh(self) -> None:
        """Takes note of files that were written since, by other processes too."""
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder else []:
            if path not in self._opened:
                self._opened.add(path)
                self._open(path)

    def __contains__(self, key: str) -> bool:
        return key in self._new or bool(self._places.get(key))

    def __len__(self) -> int:
        return len(self._new.keys() | self._places.keys())

    def get(self, key: str) -> Entry | None:
        """The entry; None where it isn't there, or not as it was written."""
        if key in self._new:
            self._new.move_to_end(key)
            return self._new[key]
        for place in reversed([*self._places.get(key, [])]):
            if (found := place.entry()) is not None:
                return found
            with contextlib.suppress(ValueError):  # another thread has seen it too
                self._places[key].remove(place)
        return None

    def note(self, key: str) -> Any:
        """What was said of an entry that was ever here."""
        return self._notes[key]

    def any_entry(self) -> Entry | None:
        """One that is on disk, where there are some."""
        return next(filter(None, map(self.get, self._places)), None)

    def put(self, key: str, entry: Entry, note: Any = None, strict: bool = False) -> None:
        """On disk when a file is full, or after `flush`, which `strict` is passed to; `note` is
        plain data."""
        self._new[key], self._notes[key] = entry, note
        self._bytes += _size(entry)
        if self.folder is None:
            while self._bytes > MEMORY_BYTES and len(self._new) > 1:
                self._bytes -= _size(self._new.popitem(last=False)[1])
        elif self._bytes >= FILE_BYTES or len(self._new) >= FILE_ENTRIES:
            self.flush(strict)

    def make(self) -> None:
        """Makes the folder on disk; a UserError where nothing can be written to it."""
        if self.folder is not None:
            make_folder(self.folder, f"{self._setting} to another")
            about = self.folder / ABOUT
            if not about.exists():
                write_text(about, json.dumps(self._about, indent=2) + "\n")

    def flush(self, strict: bool = False) -> None:
        """Writes what isn't on disk yet. Where that can't be done, it stays in memory with a
        warning; a `strict` call raises the UserError, also of an earlier one."""
        if self.folder is not None and self._new:
            try:
                self.make()
                self._write(self.folder / f"{uuid.uuid4().hex}.safetensors")
            except UserError as error:
                self.folder, self._failure = None, error
                log.warning("%s; until then, new entries stay in memory", error)
            else:
                self.refresh()
                self._new.clear()
                self._bytes = 0
        if strict and self._failure is not None:
            raise self._failure

    def _write(self, path: Path) -> None:
        """The new entries as one file; a UserError where that can't be done."""
        assert self.folder is not None
        names = next(iter(self._new.values())).keys()
        flat = {name: _end_to_end(entry[name] for entry in self._new.values()) for name in names}
        index = {
            key: [_checksum(entry), {name: list(entry[name].shape) for name in names}, note]
            for key, entry, note in ((k, e, self._notes[k]) for k, e in self._new.items())
        }
        told = {"format": FORMAT, "about": self.folder.name, "index": json.dumps(index)}
        write_tensors(path, flat, told)

    def _open(self, path: Path) -> None:
        """Takes note of what a file holds. Whatever is wrong with it, it is left out."""
        from safetensors import safe_open

        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata()
                flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if (told["format"], told["about"]) != (FORMAT, path.parent.name):
                raise ValueError("it belongs into another folder, or to another version")
            ends, places, notes = dict.fromkeys(flat, 0), {}, {}
            for key, (checksum, shapes, note) in json.loads(told["index"]).items():
                parts = {name: (ends[name], tuple(shape)) for name, shape in shapes.items()}
                ends = {name: start + math.prod(shape) for name, (start, shape) in parts.items()}
                places[key], notes[key] = Place(flat, parts, int(checksum)), note
            if ends != {name: len(tensor) for name, tensor in flat.items()}:
                raise ValueError("it holds more or less than its index says")
        except Exception as error:  # of safetensors, or for any part that isn't what it should be
            log.warning(
                "%s: %s: %s; it is left out, and can be deleted", self._setting, path, error
            )
            return
        self._notes |= notes
        for key, place in places.items():
            self._places.setdefault(key, []).append(place)


def _end_to_end(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _size(entry: Entry) -> int:
    """In bytes."""
    return sum(tensor.nbytes for tensor in entry.values())


def _checksum(entry: Entry) -> int:
    """Of the names, dtypes, shapes and bytes."""
    found = 0
    for name, tensor in sorted(entry.items()):
        about = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        found = zlib.crc32(about.encode(), found)
        data = tensor.detach().reshape(-1).view(torch.uint8)
        found = zlib.crc32(data.numpy().data, found)
    return found
