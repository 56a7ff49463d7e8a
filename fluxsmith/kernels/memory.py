"""Keeping the memory that training frees and asks for again in every step.

glibc hands large blocks back to the system as soon as they are freed, and gets new ones, page by
page and cleared, for the next step: some 10,000 page faults in each step of the lesson's network.
"""

import ctypes
import os
import sys
from collections.abc import Mapping

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

# What a user may have set instead.
SETTINGS = (
    "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_",
    "GLIBC_TUNABLES",
)  # fmt: skip


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Has glibc's malloc keep what this process frees; says whether it does.

    Not where there is no glibc, nor where the environment has settings of malloc's.
    """
    if not sys.platform.startswith("linux") or any(name in environment for name in SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a static build; musl
        return False
    # No mapping of its own for a large block, and nothing back from the heap's end.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
