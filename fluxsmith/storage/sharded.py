"""Checkpoints in folders, of a state that is cut over ranks: each rank writes and reads its share.

`diffusion-<step>/` holds what torch.distributed.checkpoint writes, `plain.pt` with all that is no
tensor, and `manifest.json` with the SHA-256 of every file. A folder without a manifest is none: it
is written last, under another name of the folder.
"""

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.storage.digest import BLOCK
from fluxsmith.storage.files import explaining, first_line, flush_folder, read_json
from fluxsmith.storage.layout import refuse_newer
from fluxsmith.storage.tensor_files import DamagedFileError, read_pickled

MANIFEST, PLAIN = "manifest.json", "plain.pt"
LAYOUT = "fluxsmith-sharded/1"
# What torch's description of the tensors, a pickle, may name: plain classes that hold numbers.
HARMLESS = {
    "torch": {"Size", *(name for name, x in vars(torch).items() if isinstance(x, torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}  # fmt: skip

Place = Callable[[str, Tensor], Tensor]
Tell = Callable[[Any], list[Any]]  # what every rank says


def is_one(path: Path) -> bool:
    """Whether this is a checkpoint in a folder."""
    return (path / MANIFEST).is_file()


def save(path: Path, state: Mapping[str, Any], rank: int, tell: Tell, group: Any) -> None:
    """Writes the folder, with every rank's share of the tensors; a call of all ranks at once, with
    `tell` to exchange notes and torch's `group`, None for one process alone. Whatever happens,
    `path` is the whole checkpoint or not there. Raises the same UserError on all ranks.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_shares

    temporary = path.with_name(f".{path.name}.tmp")
    tensors: dict[str, Tensor] = {}
    plain = _without_tensors(state, "", tensors)
    try:
        with _together(path, tell):
            if rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
        with _together(path, tell), _quietly():
            writer = FileSystemWriter(temporary)
            save_shares(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
        found: dict[str, str] = {}
        with _together(path, tell):
            found = {p.name: _digest(p) for p in sorted(temporary.glob(f"__{rank}_*"))}
        digests = {name: digest for each in tell(found) for name, digest in each.items()}
        with _together(path, tell):
            if rank == 0:
                torch.save(plain, temporary / PLAIN)
                digests |= {name: _digest(temporary / name) for name in (PLAIN, ".metadata")}
                manifest = {"layout": LAYOUT, "sha256": digests}
                (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
                for name in (PLAIN, MANIFEST):
                    with open(temporary / name, "rb") as stream:
                        os.fsync(stream.fileno())
                flush_folder(temporary)
                if not is_one(path):  # what is left of a deleted one
                    shutil.rmtree(path, ignore_errors=True)
                temporary.rename(path)
                flush_folder(path.parent)
    finally:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)


def read_plain(path: Path) -> dict[str, Any]:
    """What a folder holds, with an empty tensor on the meta device in the place of each. Every byte
    of it is read once and checked; a DamagedFileError for one that is not what was written."""
    try:
        manifest = read_json(path / MANIFEST)
    except UserError as error:
        raise DamagedFileError(str(error)) from None
    refuse_newer(path, manifest.get("layout"), LAYOUT)
    digests = manifest.get("sha256")
    if manifest.get("layout") != LAYOUT or not isinstance(digests, dict):
        raise DamagedFileError(f"{path} is not a fluxsmith checkpoint: its layout is unknown")
    for name, digest in digests.items():
        file = path / Path(str(name)).name
        with explaining(f"can't read {file}", "; use another checkpoint"):
            if not file.is_file() or _digest(file) != digest:
                raise DamagedFileError(f"{file} is not as it was written; use another checkpoint")
    sizes = _reader(path).read_metadata().state_dict_metadata
    empty = {
        name: torch.empty(known.size, dtype=known.properties.dtype, device="meta")
        for name, known in sizes.items()
    }
    found: dict[str, Any] = _with_tensors(read_pickled(path / PLAIN), empty)
    return found


def read_tensors(
    path: Path, plain: Mapping[str, Any], place: Place | None = None
) -> dict[str, Any]:
    """The same with the tensors' values, whole on the CPU. Or `place` says for the dotted name of
    each, and its empty tensor, where to put it: of one that is cut over ranks (a DTensor) only the
    own share is read."""
    from torch.distributed.checkpoint.state_dict_loader import load

    tensors: dict[str, Tensor] = {}
    names = _without_tensors(plain, "", tensors)
    place = place or (lambda name, empty: torch.empty_like(empty, device="cpu"))
    targets = {name: place(name, empty) for name, empty in tensors.items()}
    with _quietly(), explaining(f"can't read {path}", "; use another checkpoint", Exception):
        load(targets, storage_reader=_reader(path), no_dist=True)
    found: dict[str, Any] = _with_tensors(names, targets)
    return found


def _without_tensors(item: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Nested plain data with the dotted name of each tensor in its place, in a tuple; the tensors
    are noted by these."""
    if isinstance(item, Tensor):
        tensors[name] = item
        return (name,)
    if isinstance(item, Mapping):
        return {k: _without_tensors(v, f"{name}.{k}" if name else str(k), tensors)
                for k, v in item.items()}  # fmt: skip
    if isinstance(item, list | tuple):
        return [_without_tensors(v, f"{name}.{i}", tensors) for i, v in enumerate(item)]
    return item


def _with_tensors(item: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse."""
    if isinstance(item, dict):
        return {key: _with_tensors(value, tensors) for key, value in item.items()}
    if isinstance(item, list):
        return [_with_tensors(value, tensors) for value in item]
    return tensors[item[0]] if isinstance(item, tuple) else item


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's warning that a process works by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _together(path: Path, tell: Tell) -> Iterator[None]:
    """What fails inside on one rank is the same UserError on all."""
    problem = ""
    try:
        yield
    except Exception as error:  # torch's writers raise many kinds
        problem = first_line(error)
    if said := next(filter(None, tell(problem)), None):
        raise UserError(f"can't write the checkpoint {path}: {said}")


def _digest(file: Path) -> str:
    found = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def _reader(path: Path) -> Any:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    class Reader(FileSystemReader):
        """Without the code that a pickle can hold."""

        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            with open(path / ".metadata", "rb") as stream:
                return _Plain(stream, path).load()

    return Reader(path)


class _Plain(pickle.Unpickler):
    """Reads torch's description of a checkpoint, and refuses what is none."""

    def __init__(self, stream: Any, path: Path) -> None:
        super().__init__(stream)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if name not in HARMLESS.get(module, ()):
            raise UserError(f"{self._path} holds code ({module}.{name}): refused, nothing was run")
        return super().find_class(module, name)
