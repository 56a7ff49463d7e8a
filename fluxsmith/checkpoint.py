"""Checkpoints: one self-describing file, written atomically, opened without running any code.

A checkpoint is a dictionary of plain data and tensors; `FORMAT` names its layout. In `model` and
`ema` the network's tensors are named `network.` + BFL's key, a learned text encoder's `text.` + its
own. The file is the zip archive that torch writes; its zip comment is the SHA-256 of all the rest.
"""

import contextlib
import json
import os
import pickle
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from fluxsmith.digest import Digesting, problem_with
from fluxsmith.errors import UserError
from fluxsmith.nesting import written_out

FORMAT = "fluxsmith/1"
KEYS = {
    "format": str, "step": int, "images_seen": int, "config": dict, "model": dict, "ema": dict,
    "optimizer": dict, "data": dict, "window": dict, "metadata": dict,
}  # fmt: skip
MOST_VALUES = 10**6  # in a checkpoint, a tensor being one
_NAME = re.compile(r"diffusion-(\d+)\.pt")


class DamagedCheckpointError(UserError):
    """The file is not what was written: truncated, empty, or with bytes changed."""


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"diffusion-{step}.pt"


def save(
    path: Path, checkpoint: Mapping[str, Any], cancelled: Callable[[], bool] = lambda: False
) -> None:
    """Writes to a temporary name beside `path`, flushes it to disk, then renames it.

    Whatever happens in between, `path` is either what it was or the whole new checkpoint. It is
    given up with a UserError once `cancelled` says so.
    """
    missing = KEYS.keys() - checkpoint.keys()
    assert not missing, f"a checkpoint needs {missing}"
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as stream:
            digesting = Digesting(stream, cancelled)
            torch.save(dict(checkpoint), cast(IO[bytes], digesting))  # all of it that torch uses
            digesting.sign()
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = _root(error)
        raise UserError(f"can't write the checkpoint {path}: {_first_line(reason)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """The name that a checkpoint is written under before it is whole."""
    return path.with_name(f".{path.name}.tmp")


def load(path: str | Path) -> dict[str, Any]:
    """The checkpoint at `path`, its tensors memory-mapped on the CPU.

    The whole file is read once and checked first. Only plain data and tensors are accepted: a file
    with pickled code in it is refused unread. Raises a DamagedCheckpointError for a file that is
    not what was written, and a UserError for one that is no checkpoint.
    """
    path = Path(path)
    if not _is_file(path):
        raise UserError(f"no checkpoint at {path}{_suggest(path)}")
    try:
        problem = problem_with(path)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}") from None
    if problem:
        raise DamagedCheckpointError(
            f"{path} is not a whole checkpoint: {problem}; nothing of it was run; use another one"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds pickled code or objects, not plain data: refused, nothing of it was "
            f"run; get a checkpoint that fluxsmith wrote"
        ) from None
    except Exception as error:  # what is no checkpoint can raise anything in torch's reader
        raise DamagedCheckpointError(
            f"{path} is not a whole checkpoint ({_first_line(error)}): truncated, damaged or "
            f"another kind of file; use another one"
        ) from None
    # Values within values, each named twice, are endless to whoever writes them out or compares.
    if written_out(checkpoint, MOST_VALUES) > MOST_VALUES:
        raise UserError(
            f"{path} is not a fluxsmith checkpoint: it has more than {MOST_VALUES:,} values; use "
            f"another one"
        )
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{path} is not a fluxsmith checkpoint: its format is {reprlib.repr(found)}, not "
            f"{FORMAT!r}"
        )
    missing = sorted(KEYS.keys() - checkpoint.keys())
    if missing:
        raise UserError(f"the checkpoint {path} lacks {', '.join(missing)}; use another one")
    if wrong := _misfit(checkpoint):
        raise UserError(f"{path} is not a fluxsmith checkpoint: {wrong}; use another one")
    return checkpoint


def _misfit(checkpoint: Mapping[str, Any]) -> str | None:
    """What is not of its kind in a well-formed file of nonsense."""
    for key, kind in KEYS.items():
        found = checkpoint[key]  # a state_dict is a kind of dict
        if not isinstance(found, kind) or isinstance(found, bool):
            return f"its {key} is no {kind.__name__}"
    for key in ("model", "ema", "window"):
        for name, tensor in checkpoint[key].items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                return f"its {key} holds more than tensors by name"
    if checkpoint["step"] < 0:
        return "its step is negative"
    captions = checkpoint["metadata"].get("captions", [])
    if type(captions) is not list or not all(isinstance(text, str) for text in captions):
        return "its captions are no list of texts"
    for key in ("config", "data", "metadata"):
        try:
            json.dumps(checkpoint[key])
        except (TypeError, ValueError):
            return f"its {key} holds more than plain data"
    return None


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
            with contextlib.suppress(OSError):  # it takes up the disk, and that is all
                path.unlink()


def set_aside(path: Path) -> Path:
    """Renames a damaged checkpoint, so that nothing takes it for one; it is kept to look at."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(aside)
    except OSError as error:
        raise UserError(f"can't rename {path}: {error.strerror or error}; move it away") from None
    return aside


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


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _root(error: BaseException) -> BaseException:
    """The OSError that torch's own error came from, where there was one: it says why."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return cause or error


def _first_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.splitlines()[0] if text else type(error).__name__
