"""Tar files read from front to back, whose members can't take more memory than they should: a
header, a sparse file or a compressed stream of a few bytes may claim any size."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import IO, Any, cast

from fluxsmith.errors import UserError

MOST_BYTES = 2**28  # of a member; far more than any picture takes
MOST_HEADER = 2**16  # bytes of an extended header, which holds names and such
LONGEST_NAME = 4096
MOST_RATIO = 100  # of what comes out of a compressed file to what went in, beyond MOST_BYTES

COMPRESSED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}  # these unpack no more than is asked for; tarfile's own streaming unpacks all that it has read
HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def members(source: Any) -> Iterator[tuple[str, bytes]]:
    """The regular files in a tar file by name, compressed or not.

    `source` needs no more than `read` and `close`, and is closed at the end. Raises what tarfile
    and the decompressors raise, and a UserError for a member that would take too much memory.
    """
    with closing(_Counted(source)) as counted:
        stream = io.BufferedReader(counted)
        start = stream.peek(6)
        unpack = next((kind for magic, kind in COMPRESSED.items() if start.startswith(magic)), None)
        unpacked = cast(IO[bytes], unpack(stream) if unpack else stream)
        with tarfile.open(fileobj=unpacked, mode="r|", tarinfo=_Checked) as tar:
            for member in tar:
                _check(member.name, member.size)  # a sparse file's is known by now
                if tar.offset > MOST_BYTES + MOST_RATIO * counted.count:
                    raise UserError(
                        f"it unpacks to more than {MOST_RATIO} times its size, as no pictures do"
                    )
                file = tar.extractfile(member) if member.isreg() else None
                if file is not None:
                    yield member.name, file.read()
                setattr(tar, "members", [])  # noqa: B010 (undeclared; else it remembers all)


class _Counted(io.RawIOBase):
    """Counts the bytes that are read."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()


class _Checked(tarfile.TarInfo):
    """A header that is looked at before what it announces is read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Checked":
        header = super().frombuf(buf, encoding, errors)
        most = MOST_HEADER if header.type in (*HEADERS, *LONG_NAMES) else MOST_BYTES
        _check(header.name, header.size, most)
        return header


def _check(name: str, size: int, most: int = MOST_BYTES) -> None:
    if not 0 <= size <= most:
        raise UserError(f"{name[:60]} in it claims {size:,} bytes; {most:,} are allowed")
    if len(name) > LONGEST_NAME:
        raise UserError(f"a name in it has {len(name):,} characters; {LONGEST_NAME:,} are allowed")
