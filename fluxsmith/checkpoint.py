"""Checkpoints: one self-describing file, written atomically, opened without running any code.

A checkpoint is a dictionary of plain data and tensors; `FORMAT` names its layout. In `model` and
`ema` the network's tensors are named `network.` + BFL's key, a learned text encoder's `text.` + its
own.
"""

import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fluxsmith.errors import UserError

FORMAT = "fluxsmith/1"
KEYS = {
    "format", "step", "images_seen", "config", "model", "ema", "optimizer", "data", "window",
    "metadata",
}  # fmt: skip
_NAME = re.compile(r"diffusion-(\d+)\.pt")


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"diffusion-{step}.pt"


def save(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Writes to a temporary name beside `path`, flushes it to disk, then renames it.

    Whatever happens in between, `path` is either what it was or the whole new checkpoint.
    """
    missing = KEYS - checkpoint.keys()
    assert not missing, f"a checkpoint needs {missing}"
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as stream:
            torch.save(dict(checkpoint), stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise UserError(f"can't write the checkpoint {path}: {_first_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def load(path: str | Path) -> dict[str, Any]:
    """The checkpoint at `path`, its tensors memory-mapped on the CPU.

    Only plain data and tensors are accepted: a file with pickled code in it is refused unread.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}{_suggest(path)}")
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is not a whole checkpoint: truncated, empty, or another kind of file; nothing "
            f"of it was run; use another one"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds pickled code or objects, not plain data: refused, nothing of it was "
            f"run; get a checkpoint that fluxsmith wrote"
        ) from None
    except Exception as error:  # a damaged byte can raise anything in torch's reader
        raise UserError(
            f"{path} is not a whole checkpoint ({_first_line(error)}): truncated, damaged or "
            f"another kind of file; use another one"
        ) from None
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{path} is not a fluxsmith checkpoint: its format is {found!r}, not {FORMAT!r}"
        )
    missing = sorted(KEYS - checkpoint.keys())
    if missing:
        raise UserError(f"the checkpoint {path} lacks {', '.join(missing)}; use another one")
    return checkpoint


def find(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run as (step, path), oldest first."""
    found = []
    for path in folder.glob("diffusion-*.pt"):
        if match := _NAME.fullmatch(path.name):
            found.append((int(match[1]), path))
    return sorted(found)


def newest(path: Path) -> Path:
    """`path` itself, or the newest checkpoint in it where it is a run's folder."""
    if not path.is_dir():
        return path
    found = find(path)
    if not found:
        raise UserError(f"no checkpoint in {path}; train one first, or name its file")
    return found[-1][1]


def prune(folder: Path, keep: int, keep_every: int) -> None:
    """Deletes all but the newest `keep` checkpoints (0: deletes none) and the multiples of
    `keep_every`."""
    if keep == 0:
        return
    for step, path in find(folder)[:-keep]:
        if not keep_every or step % keep_every:
            path.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the system knows how (POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse; the file is there
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _suggest(path: Path) -> str:
    there = [str(p) for _, p in find(path.parent)] if path.parent.is_dir() else []
    return f"; there is {', '.join(there)}" if there else "; check the path, or train one first"


def _first_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.splitlines()[0] if text else type(error).__name__
