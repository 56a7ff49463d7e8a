"""Fetching a file once: mirrors in turn, a progress bar, a check, and a rename at the end."""

import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path

from rich.progress import wrap_file

from fluxsmith.errors import UserError

TIMEOUT = 20  # seconds without a byte


class DownloadError(Exception):
    """No mirror gave the right bytes; the message says why, for each."""


def download(urls: Sequence[str], target: Path, check: Callable[[bytes], None]) -> Path:
    """Downloads to `target` from the first of `urls` whose bytes pass `check`.

    `check` raises a DownloadError for wrong bytes. The file appears under its name only when it is
    whole and right.
    """
    problems = []
    for url in urls:
        try:
            data = _fetch(url, target.name)
            check(data)
        except (DownloadError, OSError, ValueError, HTTPException) as error:
            host = url.split("/")[2]
            problems.append(f"{host}: {getattr(error, 'reason', None) or error}")
            continue
        _write(target, data)
        return target
    raise DownloadError("; ".join(problems))


def _write(target: Path, data: bytes) -> None:
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(target)
    except OSError as error:
        raise UserError(
            f"can't write {target}: {error.strerror}; set FLUXSMITH_CACHE to a folder that can be "
            f"written"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _fetch(url: str, description: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "fluxsmith"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        size = int(response.headers.get("Content-Length") or 0)
        with wrap_file(response, size, description=description) as stream:
            return stream.read()
