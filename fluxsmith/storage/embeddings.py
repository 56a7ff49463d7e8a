"""Text embeddings, kept so that each prompt is encoded once: in memory, and on disk for later runs.

On disk there is a folder for each set of encoders at one setting, named by what its embeddings
depend on. It holds safetensors files, each written whole under a name of its own, so that several
runs may fill the same folder. They are mapped into memory, so the system keeps what fits.
"""

import contextlib
import json
import logging
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fluxsmith.device import cache_folder
from fluxsmith.errors import UserError
from fluxsmith.storage.files import make_folder, parse_mapping, write_text
from fluxsmith.storage.tensor_files import write_tensors

MEMORY_BYTES = 2 * 1024**3  # of embeddings that are not on disk; what was used least goes first
FILE_BYTES = 64 * 1024**2  # so much, or so many prompts, make a file
FILE_PROMPTS = 4096
FORMAT = "fluxsmith-text/1"
ABOUT = "encoder.json"  # in each folder: what its embeddings depend on
DIGESTS = "digests.json"  # beside the folders: digests of encoders

# Tokens (l, d), pooled vector (p,), the number of tokens, and the number that the prompt would have
# had uncut.
Entry = tuple[Tensor, Tensor, int, int]

log = logging.getLogger(__name__)


class EmbeddingStore:
    """The embeddings and the digests of all encoders, below `root`; None keeps them in memory."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self._digests: dict[str, str] = {}

    def digest(self, key: str) -> str | None:
        """The digest that was noted under this key."""
        if key not in self._digests and self.root is not None:
            self._digests |= _read_object(self.root / DIGESTS)
        return self._digests.get(key)

    def note_digest(self, key: str, digest: str) -> None:
        if self.digest(key) == digest:
            return
        self._digests[key] = digest
        if self.root is not None:
            with contextlib.suppress(UserError):  # can't be written: it is computed again next time
                make_folder(self.root, "text.cache")
                file = self.root / DIGESTS
                write_text(file, json.dumps(_read_object(file) | {key: digest}, indent=2))

    def open(self, name: str, about: Mapping[str, Any]) -> "EmbeddingCache":
        """The embeddings that depend on `about`, in the folder of that name."""
        return EmbeddingCache(self.root and self.root / name, about)


def open_store(cache: str) -> EmbeddingStore:
    """The store that `text.cache` names: a folder, `auto` for the usual one, or `memory`."""
    if cache == "memory":
        return EmbeddingStore(None)
    return EmbeddingStore(cache_folder() / "text" if cache == "auto" else Path(cache).expanduser())


class Place(NamedTuple):
    """An embedding on disk: rows of the tensors of a file."""

    tokens: Tensor
    pooled: Tensor
    start: int  # among the tokens
    end: int
    row: int  # among the pooled vectors


class EmbeddingCache:
    """The embeddings of some encoders at one setting, by prompt."""

    def __init__(self, folder: Path | None, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self._about = about
        self._memory: OrderedDict[str, Entry] = OrderedDict()  # what is not on disk
        self._bytes = 0  # of these
        self._places: dict[str, Place] = {}
        self._counts: dict[str, tuple[int, int]] = {}
        self._failure: UserError | None = None  # of writing
        for path in sorted(folder.glob("*.safetensors")) if folder else []:
            self._open(path)

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._memory or prompt in self._places

    def get(self, prompt: str) -> Entry | None:
        """The embedding; None where it isn't there."""
        if prompt in self._memory:
            self._memory.move_to_end(prompt)
            return self._memory[prompt]
        if place := self._places.get(prompt):
            tokens, pooled = place.tokens[place.start : place.end], place.pooled[place.row]
            return tokens, pooled, *self._counts[prompt]
        return None

    def put(self, prompt: str, entry: Entry) -> None:
        self._memory[prompt] = entry
        self._bytes += entry[0].nbytes + entry[1].nbytes
        self._counts[prompt] = entry[2:]
        if self.folder is None:
            while self._bytes > MEMORY_BYTES and len(self._memory) > 1:
                _, oldest = self._memory.popitem(last=False)
                self._bytes -= oldest[0].nbytes + oldest[1].nbytes
        elif self._bytes >= FILE_BYTES or len(self._memory) >= FILE_PROMPTS:
            self.flush()

    def counts(self, prompt: str) -> tuple[int, int]:
        """The tokens of a prompt that was ever here, and those that it would have uncut."""
        return self._counts[prompt]

    def widths(self) -> tuple[int, int] | None:
        """Of tokens and pooled vectors, where there are some on disk."""
        for place in self._places.values():
            return place.tokens.shape[1], place.pooled.shape[1]
        return None

    def make(self) -> None:
        """Makes the folder on disk; a UserError where nothing can be written to it."""
        if self.folder is not None:
            make_folder(self.folder, "text.cache to another, or to `memory`")
            about = self.folder / ABOUT
            if not about.exists():
                write_text(about, json.dumps(self._about, indent=2) + "\n")

    def flush(self, strict: bool = False) -> None:
        """Writes what isn't on disk yet. Where that can't be done, it stays in memory with a
        warning; a `strict` call raises the UserError, also of an earlier one."""
        if self.folder is not None and self._memory:
            try:
                self.make()
                path = _write_file(self.folder, self._memory)
            except UserError as error:
                self.folder, self._failure = None, error
                log.warning("%s; until then, embeddings stay in memory", error)
            else:
                self._open(path)
                self._memory.clear()
                self._bytes = 0
        if strict and self._failure is not None:
            raise self._failure

    def _open(self, path: Path) -> None:
        """Takes note of what a file holds. Whatever is wrong with it, it is left out."""
        from safetensors import safe_open

        try:
            with safe_open(path, framework="pt") as file:
                prompts = json.loads(file.metadata()["prompts"])
                tokens, pooled = file.get_tensor("tokens"), file.get_tensor("pooled")
                names = ("length", "real", "needed")
                rows = torch.stack([file.get_tensor(name) for name in names], dim=1).tolist()
            places, counts, end = {}, {}, 0
            for row, (prompt, found) in enumerate(zip(prompts, rows, strict=True)):
                length, real, needed = found
                start, end = end, end + length
                places[prompt] = Place(tokens, pooled, start, end, row)
                counts[prompt] = real, needed
        except Exception as error:  # of safetensors, or for any part that isn't what it should be
            log.warning("text cache: %s: %s; it is left out, and can be deleted", path, error)
            return
        self._places |= places
        self._counts |= counts


def _write_file(folder: Path, entries: Mapping[str, Entry]) -> Path:
    """Writes the embeddings as one new file; a UserError where that can't be done."""
    tokens, pooled, real, needed = zip(*entries.values(), strict=True)
    tensors = {
        "tokens": torch.cat(tokens),  # (sum of lengths, d)
        "pooled": torch.stack(pooled),  # (n, p)
        "length": torch.tensor([len(each) for each in tokens]),
        "real": torch.tensor(real),
        "needed": torch.tensor(needed),
    }
    metadata = {"format": FORMAT, "prompts": json.dumps(list(entries))}
    path = folder / f"{uuid.uuid4().hex}.safetensors"
    write_tensors(path, tensors, metadata)
    return path


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or something else."""
    try:
        return parse_mapping(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
