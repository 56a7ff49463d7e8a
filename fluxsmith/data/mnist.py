"""MNIST from its four IDX files, gzipped or not, found on disk or downloaded."""

import gzip
import hashlib
import math
import os
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from fluxsmith.data.captions import DIGIT_CAPTIONS, DIGIT_CLASSES
from fluxsmith.data.download import DownloadError, download
from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.settings import Split
from fluxsmith.errors import UserError
from fluxsmith.files import cache_folder

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# MD5 of the uncompressed files, which stays the same however they are compressed.
MOST_BYTES = 2**28  # of a file, unpacked; the largest of MNIST's takes 47 million
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


def load(path: str | None, split: Split) -> ImageSet:
    """Images (n, 1, 28, 28), white on black: 60,000 to train with, 10,000 to test."""
    images_name, labels_name = FILES[split]
    images_file = _find(images_name, path, split)
    labels_file = _find(labels_name, path, split)
    images = read_idx(images_file, dimensions=3)
    labels = read_idx(labels_file, dimensions=1).long()
    if len(images) != len(labels):
        raise UserError(
            f"{images_file} holds {len(images)} images but {labels_file} {len(labels)} labels; "
            f"replace the pair with one that belongs together"
        )
    if len(labels) and labels.max() > 9:
        raise UserError(f"{labels_file} has the label {int(labels.max())}; MNIST's are 0 to 9")
    return ImageSet(images[:, None], labels, DIGIT_CAPTIONS, DIGIT_CLASSES)


def read_idx(file: Path, dimensions: int) -> Tensor:
    """The uint8 array in an IDX file; a UserError says what is wrong with it.

    Header, big-endian: two zero bytes, the type (8 is uint8), the number of dimensions, then each
    size as 32 bits.
    """
    data = _read_maybe_gzipped(file)
    if len(data) > MOST_BYTES:
        raise UserError(f"{file} unpacks to more than {MOST_BYTES:,} bytes; MNIST's are far fewer")
    magic, header = bytes((0, 0, 8, dimensions)), 4 + 4 * dimensions
    if len(data) < header or data[:4] != magic:
        raise UserError(
            f"{file} is not an IDX file of {dimensions}-dimensional bytes: it starts with "
            f"{data[:4].hex() or 'nothing'}, not {magic.hex()}; fetch it again"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    promised, found = math.prod(shape), len(data) - header
    if found != promised:
        raise UserError(
            f"{file} is {'truncated' if found < promised else 'too long'}: its header promises "
            f"{promised} bytes and {found} follow; fetch it again"
        )
    if not promised:
        raise UserError(f"{file} holds no items: its header says {shape}; fetch it again")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header).view(shape)


def _read_maybe_gzipped(file: Path) -> bytes:
    try:
        if file.suffix == ".gz":
            with gzip.open(file) as stream:
                return stream.read(MOST_BYTES + 1)
        with open(file, "rb") as stream:
            return stream.read(MOST_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{file} is damaged ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"can't read {file}: {error.strerror}") from None


def _find(name: str, path: str | None, split: Split) -> Path:
    """The file under data.path, else $FLUXSMITH_DATA/mnist, else the cache, else downloaded."""
    if path and not Path(path).is_dir():
        raise UserError(
            f"data.path={path}: there is no such folder, for {name}; correct or remove it"
        )
    folders = [Path(path)] if path else []
    if shared := os.environ.get("FLUXSMITH_DATA"):
        folders.append(Path(shared) / "mnist")
    folders.append(cache_folder() / "mnist")
    for folder in folders:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    if path:
        raise UserError(
            f"data.path={path}: no {name} or {name}.gz there; put the four MNIST files in that "
            f"folder or remove the key to download them"
        )
    return _download(name, FILES[split][name])


def _download(name: str, md5: str) -> Path:
    target = cache_folder() / "mnist" / f"{name}.gz"

    def check(data: bytes) -> None:
        try:
            found = hashlib.md5(gzip.decompress(data)).hexdigest()
        except (OSError, EOFError, zlib.error) as error:
            raise DownloadError(f"not a gzip file: {error}") from None
        if found != md5:
            raise DownloadError(f"its MD5 is {found}, not {md5}")

    try:
        return download([f"{mirror}{name}.gz" for mirror in MIRRORS], target, check)
    except DownloadError as error:
        files = ", ".join(f"{n}.gz" for files in FILES.values() for n in files)
        raise UserError(
            f"can't download MNIST ({error}); put {files} into {target.parent}, or into a folder "
            f"mnist/ whose parent FLUXSMITH_DATA names, or set data.path"
        ) from None
