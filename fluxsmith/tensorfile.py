"""Tensors in other programs' files, by name: safetensors, whole or in shards, and torch's own.

Nothing in a file is ever executed, and tensors stay on disk until they are used.
"""

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.files import write_whole

SAFETENSORS = (".safetensors", ".sft")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, of an index of shards, or of a folder that holds either.

    Memory-mapped on the CPU: a tensor takes memory when it is first read.
    """
    path = Path(path)
    if path.is_dir():
        path = _weights_in(path)
    if not path.is_file():
        raise UserError(f"there are no weights at {path}; check the path")
    if path.suffix == ".json":
        return _read_shards(path)
    return _read_safetensors(path)


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors; none in other files."""
    if path.suffix not in SAFETENSORS or not path.is_file():
        return {}
    with _opened(path) as file:
        return file.metadata() or {}


def read_pickled(path: Path) -> Any:
    """The plain data and tensors of a file that torch.save wrote; refused if it holds any code."""
    if not _written_by_torch(path):
        raise UserError(
            f"{path} holds no weights that can be read; give a safetensors file, or one that "
            f"torch.save wrote"
        )
    try:
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds pickled code or objects, not plain data: refused, nothing of it was "
            f"run; get it as safetensors, or as plain tensors"
        ) from None
    except Exception as error:  # a damaged byte can raise anything in torch's reader
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} can't be read as a torch file ({reason}); use another") from None


def _written_by_torch(path: Path) -> bool:
    """Whether it begins as a zip archive or, from before torch 1.6, as a pickle does."""
    try:
        with open(path, "rb") as file:
            return file.read(2) in (b"PK", b"\x80\x02")
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, whole or not at all; equal tensors and metadata give equal bytes."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda to: save_file(contiguous, to, metadata=dict(metadata)))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); truncated, damaged or another kind "
            f"of file: fetch it again"
        ) from None
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}") from None


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all shards that an index (*.safetensors.index.json) names."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise UserError(f"{index} is no index of shards: it has no weight_map")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        shard = index.parent / Path(name).name  # never outside the index's folder
        if not shard.is_file():
            raise UserError(f"{index} names {name}, which is not there; fetch all its shards")
        tensors |= _read_safetensors(shard)
    missing = sorted(where.keys() - tensors.keys())
    if missing:
        raise UserError(f"the shards of {index} lack {', '.join(missing[:3])}; fetch them again")
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"can't read {path}: {error}; fetch it again") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} is not what its name says: a mapping belongs in it")
    return data


def _weights_in(folder: Path) -> Path:
    """The index of shards in a folder, or its only safetensors file."""
    for pattern in ("*.safetensors.index.json", "*.safetensors"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found[:3])
            raise UserError(f"{folder} holds {names}; name the one to use")
    raise UserError(f"there are no weights in {folder}; it should hold a .safetensors file")
