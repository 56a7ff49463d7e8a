"""A digest inside the file it is of, so that no damage to it goes unnoticed.

torch writes a zip archive, which may end with a comment; ours is the SHA-256 of the archive as it
was without one. Every program that opens zip archives, torch included, takes it in its stride.
"""

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

MARK = b"sha256:"
COMMENT = len(MARK) + 64  # bytes: the mark and the digest in hexadecimal
NO_COMMENT = b"\0\0"  # the length of the comment, with which an archive without one ends
BLOCK = 2**20


class Digesting:
    """Passes an archive on to a file and takes its digest on the way.

    Writing is given up with an OSError once `cancelled` says so.
    """

    def __init__(self, stream: IO[bytes], cancelled: Callable[[], bool]) -> None:
        self._stream, self._cancelled = stream, cancelled
        self._digest = hashlib.sha256()
        self._end = b""

    def write(self, data: memoryview) -> int:
        if self._cancelled():
            raise InterruptedError("given up")
        self._digest.update(data)
        self._end = (self._end + bytes(data[-2:]))[-2:]
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()

    def sign(self) -> None:
        """Gives the archive its comment."""
        assert self._end == NO_COMMENT, "the archive has a comment of its own"
        self._stream.seek(-len(NO_COMMENT), os.SEEK_END)
        self._stream.write(_signature(self._digest.hexdigest()))


def problem_with(path: Path) -> str | None:
    """What is wrong with an archive, None where every byte is as it was written.

    One without a digest, such as torch.save alone writes, is checked by the CRC-32 that a zip
    archive keeps of each record. Raises an OSError where the file can't be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(r.compress_type or r.compress_size != r.file_size for r in records):
                # torch stores its records as they are, so a small file can't unpack to a large one
                return "its records are compressed, which torch's never are"
            return _wrong_digest(path) if archive.comment else _wrong_record(archive)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):
        return "truncated, empty, or another kind of file"


def _wrong_digest(path: Path) -> str | None:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        left = os.fstat(stream.fileno()).st_size - len(NO_COMMENT) - COMMENT
        while left > 0 and (block := stream.read(min(left, BLOCK))):
            digest.update(block)
            left -= len(block)
        found = stream.read()
    digest.update(NO_COMMENT)
    if found == _signature(digest.hexdigest()):
        return None
    return "its SHA-256 is not the one it was written with, so some of its bytes have changed"


def _signature(digest: str) -> bytes:
    """The comment with its length before it, as it stands in the file."""
    return struct.pack("<H", COMMENT) + MARK + digest.encode()


def _wrong_record(archive: zipfile.ZipFile) -> str | None:
    try:
        bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
        return str(error)
    return f"the record {bad} has changed" if bad else None
