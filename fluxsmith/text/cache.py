"""What a cache of embeddings has to offer; `storage.stores` opens one, in memory and on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

Entry = Mapping[str, Tensor]


class Cache(Protocol):
    """What some encoders gave at one setting, by prompt."""

    folder: Path | None  # on disk

    def __contains__(self, prompt: str) -> bool: ...

    def get(self, prompt: str) -> Entry | None:
        """The entry; None where it isn't there, or not as it was written."""
        ...

    def put(self, prompt: str, entry: Entry, note: Any) -> None:
        """With plain data to be noted of it."""
        ...

    def note(self, prompt: str) -> Any:
        """What was noted of a prompt that was ever here."""
        ...

    def any_entry(self) -> Entry | None:
        """One that is on disk, where there are some."""
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
        """What depends on `about`, under that name."""
        ...
