"""MNIST from its four IDX files, gzipped or not, found on disk or downloaded."""

import gzip
import hashlib
import math
import os
import struct
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from rich.progress import wrap_file
from torch import Tensor

from fluxsmith.data.account import some
from fluxsmith.data.captions import DIGIT_CAPTIONS, DIGIT_CLASSES
from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.records import Split
from fluxsmith.device import cache_folder
from fluxsmith.errors import UserError

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
TIMEOUT = 20  # seconds without a byte of a download
# By name, the MD5 of the uncompressed file, which stays the same however it is compressed.
FILES = {
    "train": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    },
    "test": {
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
}


@dataclass(frozen=True)
class Settings:
    LOCAL: ClassVar = ("path",)

    path: Annotated[str | None, "Folder of its four files; searched for by default."] = None


def load(settings: Settings, split: Split) -> ImageSet:
    """Images (n, 1, 28, 28), white on black: 60,000 to train with, 10,000 to test."""
    images_name, labels_name = FILES[split]
    images_file = _find(images_name, settings.path, split)
    labels_file = _find(labels_name, settings.path, split)
    images = read_idx(images_file, dimensions=3)
    labels = read_idx(labels_file, dimensions=1).long()
    if len(images) != len(labels):
        raise UserError(
            f"{images_file} holds {len(images)} images but {labels_file} {len(labels)} labels; "
            f"replace the pair with one that belongs together"
        )
    if len(labels) and labels.max() > 9:
        raise UserError(
            f"{labels_file} has the label {int(labels.max())}, and MNIST's are 0 to 9; fetch it "
            f"again, or read other pictures with data.source=folder"
        )
    return ImageSet(images[:, None], labels, DIGIT_CAPTIONS, DIGIT_CLASSES)


def read_idx(file: Path, dimensions: int) -> Tensor:
    """The uint8 array in an IDX file; a UserError says what is wrong with it.

    Header, big-endian: two zero bytes, the type (8 is uint8), the number of dimensions, then each
    size as 32 bits.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            data = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"can't read {file} ({error}); fetch it again") from None
    magic, header = bytes((0, 0, 8, dimensions)), 4 + 4 * dimensions
    if len(data) < header or data[:4] != magic:
        raise UserError(
            f"{file} is not an IDX file of {dimensions}-dimensional bytes: it starts with "
            f"{data[:4].hex() or 'nothing'}, not {magic.hex()}; fetch it again"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    promised, found = math.prod(shape), len(data) - header
    if found != promised or not found:
        raise UserError(
            f"{file} is not whole: its header promises {promised} bytes and {found} follow; fetch "
            f"it again"
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header).view(shape)


def _find(name: str, path: str | None, split: Split) -> Path:
    """The file under data.path or, where none is given, $FLUXSMITH_DATA/mnist, else the cache, else
    downloaded."""
    shared = os.environ.get("FLUXSMITH_DATA")
    usual = [Path(shared).expanduser() / "mnist"] if shared else []
    folders = [Path(path).expanduser()] if path else [*usual, cache_folder() / "mnist"]
    for folder in folders:
        for candidate in (folder / name, folder / f"{name}.gz", *_mirrored(folder, name)):
            if candidate.is_file():
                return candidate
    if path:
        there = some(sorted(file.name for file in folders[0].glob("*"))) or "nothing"
        raise UserError(
            f"data.path={path}: no {name} or {name}.gz in it or below, but {there}; put the four "
            f"MNIST files there or remove the key to download them"
        )
    return _download(name, FILES[split][name])


def _mirrored(folder: Path, name: str) -> Iterator[Path]:
    """The file as other mirrors call it, such as train-images.idx3-ubyte, and where other libraries
    put it, such as MNIST/raw. FashionMNIST and the like, whose files have the same names, are left
    out."""
    for pattern in ("*", "*/*", "*/*/*"):
        for file in sorted(folder.glob(pattern)):
            below = [part.lower() for part in file.relative_to(folder).parts[:-1]]
            other = any(part.endswith("mnist") and part != "mnist" for part in below)
            if not other and _letters(file.name.removesuffix(".gz")) == _letters(name):
                yield file


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _download(name: str, md5: str) -> Path:
    """Fetches a file from the first mirror that has it; it appears in the cache when it is whole
    and right."""
    target = cache_folder() / "mnist" / f"{name}.gz"
    problems = []
    for mirror in MIRRORS:
        try:
            data = _fetch(f"{mirror}{target.name}", target.name)
            found = hashlib.md5(gzip.decompress(data)).hexdigest()
            if found != md5:
                raise ValueError(f"its MD5 is {found}, not {md5}")
        except (OSError, EOFError, zlib.error, ValueError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            problems.append(f"{mirror.split('/')[2]}: {reason}")
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.{os.getpid()}.part")
            partial.write_bytes(data)
            partial.replace(target)
        except OSError as error:
            raise UserError(
                f"can't write {target}: {error.strerror}; set FLUXSMITH_CACHE to a folder that can "
                f"be written"
            ) from None
        return target
    files = ", ".join(f"{n}.gz" for files in FILES.values() for n in files)
    raise UserError(
        f"can't download MNIST ({'; '.join(problems)}); put {files} into {target.parent}, or into "
        f"a folder mnist/ whose parent FLUXSMITH_DATA names, or set data.path"
    )


def _fetch(url: str, description: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "fluxsmith"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        size = int(response.headers.get("Content-Length") or 0)
        with wrap_file(response, size, description=description) as stream:
            return stream.read()
