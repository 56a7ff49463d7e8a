"""Fetching a file once: mirrors in turn, a progress bar, a check, and a rename at the end."""

import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path

from rich.progress import wrap_file

TIMEOUT = 20  # seconds without a byte


class DownloadError(Exception):
    """No mirror gave the right bytes; the message says why, for each."""


def cache_folder() -> Path:
    """Where downloads and caches live: $FLUXSMITH_CACHE, else ~/.cache/fluxsmith."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FLUXSMITH_CACHE") or Path(home) / "fluxsmith")


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
        except (DownloadError, OSError, HTTPException) as error:
            host = url.split("/")[2]
            problems.append(f"{host}: {getattr(error, 'reason', None) or error}")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.part")
        partial.write_bytes(data)
        partial.replace(target)
        return target
    raise DownloadError("; ".join(problems))


def _fetch(url: str, description: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "fluxsmith"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        size = int(response.headers.get("Content-Length") or 0)
        with wrap_file(response, size, description=description) as stream:
            return stream.read()
