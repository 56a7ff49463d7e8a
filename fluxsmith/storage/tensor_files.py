"""Tensors in other programs' files, by name: safetensors, whole or in shards, and torch's own.

No code in a file is ever executed, and tensors stay on disk until they are used.
"""

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
from fluxsmith.storage.files import explaining, first_line, read_json, write_whole

SAFETENSORS = (".safetensors", ".sft")


class DamagedFileError(UserError):
    """The file is not what was written: truncated, empty, or with bytes changed."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, of an index of shards, or of a folder that holds either.

    Memory-mapped on the CPU: a tensor takes memory when it is first read.
    """
    path = Path(path)
    if path.is_dir():
        path = _weights_in(path)
    if not path.is_file():
        raise UserError(f"there are no weights at {path}; check the path")
    return _read_shards(path) if path.suffix == ".json" else _read_safetensors(path)


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors; none in other files."""
    if path.suffix not in SAFETENSORS or not path.is_file():
        return {}
    with _opened(path) as file:
        return file.metadata() or {}


def read_with_settings(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file or folder, and what stands beside them: the folder's config.json, else
    the file's metadata."""
    tensors, config = read_tensors(path), path / "config.json"
    return tensors, read_json(config) if config.is_file() else dict(read_metadata(path))


def read_pickled(path: Path) -> Any:
    """The plain data and tensors of a file that torch.save wrote, memory-mapped on the CPU; refused
    if it holds any code."""
    try:
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds no weights that can be read, but code, objects or something else: "
            f"refused, nothing of it was run; get it as safetensors, or as plain tensors"
        ) from None
    except Exception as error:  # a damaged byte can raise anything in torch's reader
        raise DamagedFileError(
            f"{path} can't be read as a torch file ({first_line(error)}); use another"
        ) from None


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """A safetensors file, whole or not at all, in `dtype` or the tensors' own; equal tensors and
    metadata give equal bytes."""
    contiguous = {name: t.to(dtype or t.dtype).contiguous() for name, t in tensors.items()}

    def write(to: Path) -> None:
        try:
            save_file(contiguous, to, metadata=dict(metadata))
        except SafetensorError as error:  # such as a full disk
            raise OSError(str(error)) from None

    write_whole(path, write)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _opened(path: Path) -> Any:
    try:
        with explaining(f"can't read {path}"):
            return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); truncated, damaged or another kind "
            f"of file: fetch it again"
        ) from None


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
