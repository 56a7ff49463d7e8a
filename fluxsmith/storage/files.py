"""Files read with a clear error, written whole or not at all, and appended to in whole entries."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fluxsmith.errors import UserError


@contextlib.contextmanager
def explaining(failure: str, fix: str = "", also: type[Exception] = OSError) -> Iterator[None]:
    """An OSError inside, or an error of the kind `also`, becomes a UserError: failure, reason and
    fix."""
    try:
        yield
    except (OSError, also) as error:
        raise UserError(f"{failure}: {first_line(error)}{fix}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file."""
    with explaining(f"can't read {path}", "; fetch it again", ValueError):
        return parse_mapping(path.read_text(encoding="utf-8"))


def read_whole(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None where there is no whole one."""
    with contextlib.suppress(OSError, ValueError):
        return parse_mapping(path.read_text(encoding="utf-8"))
    return None


def parse_mapping(text: str) -> dict[str, Any]:
    """The mapping in a JSON text; a ValueError if there is none."""
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError("it must hold a mapping")
    return data


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, then renames it to `path`.

    If that fails, a UserError says why, and `path` is what it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explaining(f"can't write {path}"):
            write(temporary)
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda to: to.write_text(text, encoding="utf-8"))


class AppendedFile:
    """A file that grows by whole entries.

    An entry that can't be written is kept and written with the next one, after what a failed write
    left behind has been cut off. Folder and file are made again if they have vanished.
    """

    def __init__(self, path: Path, contents: bytes = b"") -> None:
        """Replaces the file by these contents. Raises a UserError if it can't be written."""
        self.path = path
        self._pending = b""
        self._size = len(contents)
        write_whole(path, lambda to: to.write_bytes(contents))

    def append(self, entry: bytes) -> None:
        """Raises an OSError if it can't be written; the entry is kept all the same."""
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


def refuse_existing(file: Path) -> None:
    """Raises a UserError where a file that is to be made is there already."""
    if file.exists():
        raise UserError(f"{file}: is there already; name a new file, or delete it first")


def make_folder(folder: Path, option: str) -> None:
    """Makes the folder and checks that files can be made in it; if not, the message says to set
    `option`."""
    probe = folder / f".probe.{os.getpid()}"
    # A name with a zero byte is a ValueError.
    with explaining(f"can't write to {folder}", f"; set {option}", ValueError):
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()


def flush_folder(folder: Path) -> None:
    """Makes the rename itself survive a loss of power, on POSIX systems."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse; the file is there
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.splitlines()[0] if text else type(error).__name__
