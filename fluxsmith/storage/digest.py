"""A digest inside the file that it belongs to, so that any damage to the file is noticed.

torch writes a zip archive, which may end with a comment. Ours is the SHA-256 of the archive as it
was without one. Programs that open zip archives, torch included, ignore the comment.
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
NO_COMMENT = b"\0\0"  # an archive without a comment ends with its length, 0
BLOCK = 2**20


class Digesting:
    """A stream that writes an archive to a file and computes its digest on the way.

    `write` raises an OSError once `cancelled` returns True.
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
        """Writes the digest into the archive's comment."""
        assert self._end == NO_COMMENT, "the archive has a comment of its own"
        self._stream.seek(-len(NO_COMMENT), os.SEEK_END)
        self._stream.write(_signature(self._digest.hexdigest()))


def problem_with(path: Path) -> str | None:
    """What is wrong with an archive; None if every byte is as it was written.

    An archive without a digest, which torch.save alone writes, is checked by the CRC-32 that zip
    keeps of each record. Raises an OSError if the file can't be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.comment:
                return _wrong_digest(path)
            bad = archive.testzip()
            return f"the record {bad} has changed" if bad else None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, struct.error):
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
