"""Keeping the memory that training frees and asks for again in every step; or giving it back.

glibc hands large blocks back to the system as soon as they are freed, and gets new ones, page by
page and cleared, for the next step: some 10,000 page faults in each step of the lesson's network.
But what it keeps has holes, where weights that are cut over ranks come and go in other sizes.
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from typing import Any

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4

LARGE = 2**20  # bytes of a block that is given back

# What a user may have set instead.
SETTINGS = (
    "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_",
    "GLIBC_TUNABLES",
)  # fmt: skip


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Has glibc's malloc keep what this process frees; says whether it does.

    Not where there is no glibc, nor where the environment has settings of malloc's.
    """
    # No mapping of its own for a large block, and nothing back from the heap's end.
    return _set(environment, {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1})


def give_back_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """The same, but every large block goes back: by itself, glibc keeps those of up to 32 MiB."""
    usual = {_M_MMAP_MAX: 65536, _M_TRIM_THRESHOLD: 128 * 1024}  # where it was to keep them before
    return _set(environment, usual | {_M_MMAP_THRESHOLD: LARGE})


def _set(environment: Mapping[str, str], options: Mapping[int, int]) -> bool:
    mallopt = _of_glibc("mallopt")
    if mallopt is None or any(name in environment for name in SETTINGS):
        return False
    return all(bool(mallopt(*option)) for option in options.items())


def release_freed_memory() -> None:
    """Has glibc's malloc hand back what it keeps; it may keep what is freed later."""
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    """A function; None where there is no glibc: on other systems, in a static build, with musl."""
    try:
        return getattr(ctypes.CDLL(None), name) if sys.platform.startswith("linux") else None
    except (OSError, AttributeError):
        return None
