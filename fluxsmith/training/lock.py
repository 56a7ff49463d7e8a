"""A lock on a run's output folder, so that no two runs write to it. The operating system releases
it when its process ends, even after a crash."""

import contextlib
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import IO

from fluxsmith.errors import UserError

if sys.platform == "win32":
    import msvcrt

    def _lock(stream: IO[str]) -> None:
        stream.seek(2**30)  # far behind the text, since others can't read a locked byte
        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        stream.seek(0)
else:
    import fcntl

    def _lock(stream: IO[str]) -> None:
        # Unlike flock's, this lock is not inherited by the children that load data, so it ends
        # with the run even where they outlive it for a moment.
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_taken(folder: Path) -> bool:
    """Whether a process that is alive writes to the folder. After a crash the file is left behind,
    but its lock is gone."""
    try:
        stream = open(folder / ".lock", "r+", encoding="utf-8")  # noqa: SIM115
    except OSError:  # there is none, or it is another user's
        return False
    with stream:
        try:
            _lock(stream)  # for a moment
        except (BlockingIOError, PermissionError):
            return True
        except OSError:
            pass  # this file system has no locks
    return False


def _lock_soon(stream: IO[str]) -> None:
    try:
        _lock(stream)
    except (BlockingIOError, PermissionError):  # `is_taken` may have it at this moment
        time.sleep(0.05)
        _lock(stream)


class FolderTakenError(UserError):
    """Another process writes to the folder."""


class FolderLock:
    """The right to write to a run's folder, from `take` on; the file `.lock` says who has it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._stream: IO[str] | None = None
        self._changing = threading.RLock()  # a checkpoint's thread takes it as the training's does

    def take(self) -> None:
        """Takes the lock if it is not held, or no longer, since the folder was deleted. Raises a
        FolderTakenError that names the process which has it, and a UserError where the folder can't
        be written to."""
        with self._changing:
            while not self._held():
                self._take_anew()

    def _take_anew(self) -> None:
        self.release()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            stream = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 (stays open)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"can't write to {self.path.parent}: {reason}; set output_dir"
            ) from None
        try:
            _lock_soon(stream)
        except (BlockingIOError, PermissionError):
            raise FolderTakenError(self._refusal(stream)) from None
        except OSError:
            pass  # this file system has no locks, so nothing is protected
        self._stream = stream
        with contextlib.suppress(OSError):  # on a full disk the lock has no name in it
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            stream.flush()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        with self._changing:
            stream, self._stream = self._stream, None
            if stream is None:
                return
            with contextlib.suppress(OSError), stream:
                if self._is(stream):
                    self.path.unlink()  # while it is still locked, so that nobody else has it

    def _held(self) -> bool:
        return self._stream is not None and self._is(self._stream)

    def _is(self, stream: IO[str]) -> bool:
        """Whether the file that is locked is the one that is there."""
        try:
            return os.path.samestat(os.fstat(stream.fileno()), self.path.stat())
        except OSError:
            return False

    def _refusal(self, stream: IO[str]) -> str:
        with stream:
            stream.seek(0)
            holder = stream.read(200).strip() or "another process"
        return (
            f"{self.path.parent} is being written to by {holder}; wait for it, stop it, or set "
            f"output_dir to another folder"
        )
