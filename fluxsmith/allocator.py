"""Keeping the memory that training frees and asks for again in every step.

glibc hands large blocks back to the system as soon as they are freed, and gets new ones, page by
page and cleared, for the next step: some 10,000 page faults in each step of the lesson's network.
"""

import ctypes
import sys

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Has glibc's malloc keep what this process frees; false where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    # no block of its own for a large one, and nothing back from the heap's end
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
