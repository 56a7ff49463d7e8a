"""Writing files whole or not at all, and appending to them in whole entries."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from fluxsmith.errors import UserError


def cache_folder() -> Path:
    """Where downloads and caches live: $FLUXSMITH_CACHE, else ~/.cache/fluxsmith."""
    if own := os.environ.get("FLUXSMITH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fluxsmith"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, then renames it to `path`.

    A UserError says why where that can't be done; `path` is then what it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda to: to.write_text(text, encoding="utf-8"))


class AppendedFile:
    """A file that grows by whole entries.

    An entry that can't be written is kept and goes out with the next one, after what a failed
    write left behind has been cut off. Folder and file are made again where they have vanished.
    """

    def __init__(self, path: Path, contents: bytes = b"") -> None:
        """Starts the file afresh with these contents. Raises a UserError where that can't be."""
        self.path = path
        self._pending = b""
        self._size = len(contents)
        write_whole(path, lambda to: to.write_bytes(contents))

    def append(self, entry: bytes) -> None:
        """Raises an OSError where it can't be written; the entry is kept all the same."""
        self._pending += entry
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as stream:
            size = min(self._size, stream.tell())
            stream.truncate(size)
            stream.write(self._pending)
        self._size = size + len(self._pending)
        self._pending = b""

    def flush_to_disk(self) -> None:
        """Waits until what was appended would survive a loss of power."""
        with open(self.path, "rb") as stream:
            os.fsync(stream.fileno())


def make_folder(folder: Path, option: str) -> None:
    """Makes the folder and sees that files can be made in it; `option` names where to change it."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"can't write to {folder}: {reason}; set {option}") from None
