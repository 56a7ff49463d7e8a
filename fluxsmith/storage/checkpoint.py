"""Checkpoints: one self-describing file, written atomically, opened without running any code.

A checkpoint is a dictionary of plain data and tensors; `FORMAT` names its layout. In `model` and
`ema` the network's tensors are named `network.` + BFL's key, a learned text encoder's `text.` + its
own. The file is the zip archive that torch writes; its zip comment is the SHA-256 of all the rest.
"""

import contextlib
import os
import re
import reprlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.storage import sharded
from fluxsmith.storage.digest import Digesting, problem_with
from fluxsmith.storage.files import explaining, first_line, flush_folder
from fluxsmith.storage.layout import number_of, refuse_newer
from fluxsmith.storage.shipped import shipped_folder, shipped_models
from fluxsmith.storage.tensor_files import DamagedFileError, is_pickled, read_pickled

FORMAT = "fluxsmith/1"  # the layout that this version writes
KEYS = (
    "format", "step", "images_seen", "config", "model", "ema", "optimizer", "data", "window",
    "metadata",
)  # fmt: skip
# In the metadata: the half precision that float32 weights were rounded to, to make the file small.
# They are computed with in float32, as they were trained.
STORED = "stored_in"
_NAME = re.compile(r"diffusion-(\d+)(\.pt)?")


def checkpoint_path(folder: Path, step: int, in_shares: bool = False) -> Path:
    """Of a file, or of a folder for a checkpoint in shares (`sharded`)."""
    return folder / (f"diffusion-{step}" if in_shares else f"diffusion-{step}.pt")


def save(
    path: Path, checkpoint: Mapping[str, Any], cancelled: Callable[[], bool] = lambda: False
) -> None:
    """Writes to a temporary name beside `path`, flushes it to disk, then renames it.

    Whatever happens in between, `path` is either what it was or the whole new checkpoint. Raises a
    UserError if it can't be written, or once `cancelled` returns True.
    """
    assert checkpoint.keys() >= set(KEYS), f"a checkpoint needs {set(KEYS) - checkpoint.keys()}"
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as stream:
            digesting = Digesting(stream, cancelled)
            torch.save(dict(checkpoint), cast(IO[bytes], digesting))  # torch needs write and flush
            digesting.sign()
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = first_line(_os_error(error) or error)
        raise UserError(f"can't write the checkpoint {path}: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def without_training(checkpoint: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """What drawing needs of a checkpoint: the averaged weights, stored in a half precision."""
    weights = {name: x.to(dtype) for name, x in checkpoint["ema"].items()}
    stored = {STORED: str(dtype).removeprefix("torch.")}
    return {
        **{key: checkpoint[key] for key in ("format", "step", "images_seen", "config")},
        "model": weights,  # the file holds them once
        "ema": weights,
        "optimizer": {},
        "data": {},
        "window": {},
        "metadata": {**checkpoint["metadata"], **stored},
    }


def temporary_path(path: Path) -> Path:
    """The name that a checkpoint is written under before it is whole."""
    return path.with_name(f".{path.name}.tmp")


def load(path: str | Path, in_shares: bool = False) -> dict[str, Any]:
    """The checkpoint at `path`, its tensors memory-mapped on the CPU; those of a folder are read,
    or `in_shares` are left for `sharded.read_tensors`.

    The whole file is read once and checked first. Only plain data and tensors are accepted: a file
    with pickled code in it is refused, and none of the code is run. Raises a DamagedFileError
    for a file that is not what was written, and a UserError for one that is no checkpoint.
    """
    path = Path(path)
    folder = sharded.is_one(path)
    checkpoint = sharded.read_plain(path) if folder else _read_file(path)
    refuse_newer(path, checkpoint["format"] if is_ours(checkpoint) else None, FORMAT)
    if wrong := _misfit(checkpoint):
        raise UserError(f"{path} is not a fluxsmith checkpoint: {wrong}; use another one")
    if folder:
        return checkpoint if in_shares else sharded.read_tensors(path, checkpoint)
    if checkpoint["metadata"].get(STORED):
        for key in ("model", "ema"):
            checkpoint[key] = {name: x.float() for name, x in checkpoint[key].items()}
    return checkpoint


def _read_file(path: Path) -> Any:
    """What a file holds that is as it was written."""
    if not os.path.isfile(path):  # noqa: PTH113  Path.is_file raises for a name that is too long
        raise UserError(f"no checkpoint at {path}{_suggest(path)}")
    with explaining(f"can't read {path}"):
        problem = problem_with(path)
    if problem:
        raise DamagedFileError(f"{path} is not a whole checkpoint: {problem}; use another one")
    return read_pickled(path)


def load_if_ours(path: Path) -> dict[str, Any] | None:
    """The checkpoint at `path`, as `load` gives it; None for other files and folders."""
    if sharded.is_one(path):
        return load(path)
    kept = path.is_file() and path.suffix != ".json" and is_pickled(path)
    return load(path) if kept and is_ours(read_pickled(path)) else None


def is_ours(contents: Any) -> bool:
    """Whether the contents of a file are those of a checkpoint, of whatever version."""
    return isinstance(contents, dict) and number_of(contents.get("format"), FORMAT) is not None


def _misfit(checkpoint: Any) -> str | None:
    """What is wrong with the contents of a file that torch can read; None for a checkpoint."""
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if found != FORMAT:
        return f"its format is {reprlib.repr(found)}, not {FORMAT!r}"
    if missing := [key for key in KEYS if key not in checkpoint]:
        return f"it lacks {', '.join(missing)}"
    for key in ("model", "ema"):
        state = checkpoint[key]
        if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
            return f"its {key} holds more than tensors by name"
    return None


def find(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run as (step, path), oldest first."""
    named = ((_NAME.fullmatch(path.name), path) for path in folder.glob("diffusion-*"))
    there = ((match, path) for match, path in named if match)
    return sorted((int(m[1]), path) for m, path in there if m[2] or sharded.is_one(path))


def newest(path: Path) -> Path:
    """`path` itself, or the newest checkpoint in it where it is a run's folder, or in that of the
    model that ships under this name, where nothing of this name is here."""
    path = shipped_folder(path) or path
    if not path.is_dir() or sharded.is_one(path):
        return path
    found = find(path)
    if not found:
        raise UserError(f"no checkpoint in {path}; train one first, or name its file")
    return found[-1][1]


def prune(folder: Path, keep: int, keep_every: int) -> None:
    """Deletes checkpoints but for the newest `keep` (0: keeps all) and the multiples of
    `keep_every`."""
    if keep == 0:
        return
    for step, path in find(folder)[:-keep]:
        if not keep_every or step % keep_every:
            delete(path)


def delete(path: Path) -> None:
    """One that stays, as it can't be deleted, only takes up disk."""
    with contextlib.suppress(OSError):
        if not path.is_dir():
            path.unlink()
            return
        (path / sharded.MANIFEST).unlink(missing_ok=True)  # from here on it is none
        shutil.rmtree(path, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Renames a damaged checkpoint, so that it is kept but not found as one."""
    aside = path.with_name(f"{path.name}.damaged")
    with explaining(f"can't rename {path}", "; move it away"):
        path.replace(aside)
    return aside


def _suggest(path: Path) -> str:
    there = [str(p) for _, p in find(path.parent)] if path.parent.is_dir() else []
    if there:
        return f"; there is {', '.join(there)}"
    names = ", ".join(shipped_models())
    return "; check the path, or train one first" + f"; these come by name: {names}" * bool(names)


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError that led to torch's own error, if any: it says why."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error
