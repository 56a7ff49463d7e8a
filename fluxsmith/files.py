"""Writing files whole or not at all."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from fluxsmith.errors import UserError


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


def make_folder(folder: Path, option: str) -> None:
    """Makes the folder and sees that files can be made in it; `option` names where to change it."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"can't write to {folder}: {reason}; set {option}") from None
