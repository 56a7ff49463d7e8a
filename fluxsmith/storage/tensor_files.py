"""Tensors in other programs' files, by name: safetensors, whole or in shards, and torch's own.

No code in a file is ever executed, and tensors stay on disk until they are used.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.storage.files import explaining, first_line, write_text, write_whole
from fluxsmith.storage.mapped import MappedFile
from fluxsmith.storage.weight_files import SAFETENSORS, weight_files

# safetensors' names of dtypes.
NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
PART = 2**22  # so many numbers are converted at once


class DamagedFileError(UserError):
    """The file is not what was written: truncated, empty, or with bytes changed."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, of shards, or of a folder, as `weight_files` chooses.

    Memory-mapped on the CPU: a tensor takes memory when it is first read.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(Path(path)):
        if is_pickled(file):
            tensors |= tensors_in(read_pickled(file))
        else:
            tensors |= _read_safetensors(file)
    return tensors


def is_pickled(path: Path) -> bool:
    """Whether a file is torch's own, told by how it begins; a UserError for GGUF."""
    with explaining(f"can't read {path}"), open(path, "rb") as stream:
        start = stream.read(9)
    if start.startswith(b"GGUF"):
        raise UserError(
            f"{path} is a GGUF file, whose weights are quantised; give the model as safetensors"
        )
    return path.suffix not in SAFETENSORS and start[8:] != b"{"


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that safetensors carry beside their tensors, of shards the first one's; none in
    other files."""
    (file, *_) = weight_files(path)
    if is_pickled(file):
        return {}
    with _opened(file) as opened:
        return opened.metadata() or {}


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


def tensors_in(contents: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors among nested mappings, such as {"state_dict": {...}}, by dotted name."""
    found: dict[str, Tensor] = {}
    if isinstance(contents, Mapping):
        for key, value in contents.items():
            if isinstance(value, Tensor):
                found[f"{prefix}{key}"] = value
            else:
                found |= tensors_in(value, f"{prefix}{key}.")
    return found


Stored = Callable[[Tensor], torch.dtype]  # the dtype that a tensor is written in
Dtype = torch.dtype | Stored | None  # one for all, one for each, or their own


def beside(dtype: Dtype) -> torch.dtype | None:
    """What stands beside a network is written in: bfloat16 where its matrices are in fp8."""
    return torch.bfloat16 if callable(dtype) else dtype


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: Dtype = None,
) -> None:
    """A safetensors file, whole or not at all, in `dtype` or the tensors' own; equal tensors and
    metadata give equal bytes. They are converted and written in small parts, so that it takes no
    memory. A UserError for numbers that the dtype can't hold."""
    write_whole(path, lambda to: _write(to, tensors, metadata, _stored(dtype)))


def write_sharded(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: Dtype,
    largest: int | None,
) -> None:
    """`write_tensors`, but what is more than `largest` bytes becomes shards of at most so many,
    NAME-00001-of-00002.safetensors, and their index; a tensor is never divided."""
    stored = _stored(dtype)
    sizes = {name: t.numel() * stored(t).itemsize for name, t in tensors.items()}
    shards: list[dict[str, Tensor]] = [{}]
    room = largest or sum(sizes.values())
    for name, tensor in tensors.items():
        if shards[-1] and sizes[name] > room:
            shards.append({})
            room = largest or 0
        shards[-1][name] = tensor
        room -= sizes[name]
    if len(shards) == 1:
        write_tensors(path, tensors, metadata, dtype)
        return
    where: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file = path.with_stem(f"{path.stem}-{i:05d}-of-{len(shards):05d}")
        write_tensors(file, shard, metadata, dtype)
        where |= dict.fromkeys(shard, file.name)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
    write_text(path.with_name(f"{path.name}.index.json"), json.dumps(index, indent=2) + "\n")


def _stored(dtype: Dtype) -> Stored:
    if isinstance(dtype, torch.dtype):
        return lambda tensor: dtype
    return dtype or (lambda tensor: tensor.dtype)


def _write(
    to: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], stored: Stored
) -> None:
    dtypes = {name: stored(tensor) for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))  # aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * dtypes[name].itemsize
        shape, kind = [*tensors[name].shape], NAMES[dtypes[name]]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(to, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for part in tensors[name].detach().contiguous().flatten().split(PART):
                converted = _converted(name, part.cpu(), dtypes[name])
                stream.write(converted.view(torch.uint8).numpy().data)


def _converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == tensor.dtype or not tensor.numel():
        return tensor.to(dtype)
    most = torch.finfo(dtype).max
    if most < torch.finfo(tensor.dtype).max:
        low, high = (tensor if tensor.itemsize > 1 else tensor.float()).aminmax()
        if (largest := max(-low.item(), high.item())) > most:
            kind = str(dtype).removeprefix("torch.")
            raise UserError(f"{name} holds {largest:g}, and {kind} ends at {most:g}; use bfloat16")
    return tensor.to(dtype)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with _opened(path) as opened:  # which checks the header
        like = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if not like:
        return {}
    with open(path, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    mapped = MappedFile(path)
    starts = {name: 8 + size + header[name]["data_offsets"][0] for name in like}
    return {name: mapped.tensor(starts[name], tensor) for name, tensor in like.items()}


def _opened(path: Path) -> Any:
    try:
        with explaining(f"can't read {path}"):
            return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); truncated, damaged or another kind "
            f"of file: fetch it again"
        ) from None
