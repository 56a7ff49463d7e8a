"""What a cache of embeddings has to offer; `storage.embeddings` is one, in memory and on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

Entry = tuple[Tensor, Tensor, int, int]  # the fields of `padding.Encoded`


class Cache(Protocol):
    """The embeddings of some encoders at one setting, by prompt."""

    folder: Path | None  # on disk

    def __contains__(self, prompt: str) -> bool: ...

    def get(self, prompt: str) -> Entry | None: ...

    def put(self, prompt: str, entry: Entry) -> None: ...

    def counts(self, prompt: str) -> tuple[int, int]:
        """The tokens of a prompt that was ever here, and those that it would have uncut."""
        ...

    def widths(self) -> tuple[int, int] | None:
        """Of tokens and pooled vectors, where there are some on disk."""
        ...

    def make(self) -> None:
        """Makes the folder on disk; a UserError where nothing can be written to it."""
        ...

    def flush(self, strict: bool = False) -> None:
        """Writes what isn't on disk yet; where that can't be done, a warning, or a UserError."""
        ...


class Store(Protocol):
    """All caches below one root, and digests of encoders."""

    root: Path | None

    def digest(self, key: str) -> str | None: ...

    def note_digest(self, key: str, digest: str) -> None: ...

    def open(self, name: str, about: Mapping[str, Any]) -> Cache:
        """The embeddings that depend on `about`, under that name."""
        ...
