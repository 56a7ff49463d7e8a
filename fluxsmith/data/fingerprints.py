"""Whether data is the same as it was: what runs that are resumed and caches of latents go by."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from fluxsmith.data.pictures import in_order
from fluxsmith.data.records import EncodedPicture, FilePart
from fluxsmith.errors import UserError

STRIDE = 2**16  # bytes; a file of no more is read whole
SAMPLE = 2**12  # bytes that are read of each stride of a larger file, and of its end
MOST = 1024  # samples of one file
GROUP = 256  # files that a thread reads at a time


def fingerprint(picture: EncodedPicture) -> str:
    """A digest of bytes, or of a file's size and content: all of a small file, and samples of a
    large one, which tell apart what is compressed. "" where there is no such file."""
    if isinstance(picture, bytes):
        return _short(hashlib.sha256(picture))
    try:
        if isinstance(picture, FilePart):
            return fingerprint(picture.read())
        with open(picture, "rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            found = hashlib.sha256(f"{size}\n".encode())
            if size <= STRIDE:
                found.update(stream.read())
            else:
                for start in (*range(0, size, max(STRIDE, size // MOST)), size - SAMPLE):
                    stream.seek(start)
                    found.update(stream.read(SAMPLE))
            return _short(found)
    except OSError:
        return ""


def fingerprints(files: Sequence[Path | str], workers: int) -> Iterator[str]:
    """Of each file, by threads."""
    groups = (files[i : i + GROUP] for i in range(0, len(files), GROUP))
    with ThreadPoolExecutor(workers) as pool:
        jobs = (partial(_fingerprints, group) for group in groups)
        for found in in_order(pool, jobs, ahead=2 * workers):
            yield from found


def _fingerprints(files: Sequence[Path | str]) -> list[str]:
    return [fingerprint(Path(file)) for file in files]


def digest_of(items: Iterable[object]) -> str:
    """A short digest of plain data."""
    found = hashlib.sha256()
    for item in items:
        found.update(json.dumps(item).encode() + b"\n")
    return found.hexdigest()[:16]


def same_data(then: Mapping[str, Any], now: Mapping[str, Any], origin: str) -> None:
    """Raises a UserError where a loader's position tells of other data than it reads now; those of
    earlier versions tell only how much there was."""
    for key in ("images", "shards", "digest"):
        before, here = then.get(key), now.get(key)
        if before == here or (key == "digest" and None in (before, here)):
            continue
        if key == "digest":
            told = "on data of other names, captions or contents than there are now"
        elif before is None or here is None:
            told = f"on {'images' if 'images' in then else 'a stream of shards'}, unlike this run"
        else:
            told = f"on {before:,} {key}, and there are {here:,} now"
        raise UserError(
            f"{origin} was trained {told}; a resumed run needs the same data: bring it back, or "
            f"start a new run from its weights with --fork {origin}"
        )


def _short(digest: "hashlib._Hash") -> str:
    return digest.hexdigest()[:32]
