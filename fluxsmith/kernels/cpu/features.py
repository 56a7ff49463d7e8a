"""The features of the processor: what Linux says of them, and which of them our C++ uses."""

import functools
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from fluxsmith.errors import UserError

CPU_INFO = Path("/proc/cpuinfo")
FIRST = 8192  # characters to read, more than one core takes: a server describes hundreds, slowly

# float32 numbers in a register.
WIDTHS = {"avx512": 16, "avx2": 8}

# Set to avx2, a processor with AVX-512 computes as one without: for tests and measurements.
FORCE = "FLUXSMITH_CPU_ISA"


@functools.cache
def described(key: str, info: Path = CPU_INFO) -> str:
    """What is first said of a core under this name; nothing where that is not told."""
    try:
        with info.open() as file:
            lines = [line.partition(":") for line in file.read(FIRST).splitlines()]
    except OSError:  # not Linux
        return ""
    values = (value.strip() for name, _, value in lines if name.strip() == key)
    return next(filter(None, values), "")


def name(info: Path = CPU_INFO) -> str:
    """Its model, such as AMD EPYC, where Linux says it; elsewhere the kind of machine."""
    return described("model name", info) or platform.machine()


@functools.cache
def instructions(info: Path = CPU_INFO) -> tuple[str, ...]:
    """What its first core can execute, by Linux's names on x86 and Arm."""
    return tuple((described("flags", info) or described("Features", info)).split())


def kind() -> str:
    """Equal for processors that can run each other's code, in caches that machines may share."""
    return " ".join([platform.machine(), *instructions()])


def vectors(info: Path = CPU_INFO) -> str:
    """The widest vectors that our C++ uses here: avx512, avx2, or nothing."""
    found, asked = instructions(info), os.environ.get(FORCE) or "avx512"
    if asked not in WIDTHS:
        raise UserError(f"{FORCE}={asked}: must be avx2 or avx512")
    if "avx512f" in found and asked == "avx512":
        return "avx512"
    return "avx2" if "avx2" in found and "fma" in found else ""


def fill_registers(sizes: Sequence[int]) -> bool:
    """Whether so many numbers each fill registers of these vectors without a rest."""
    width = WIDTHS.get(vectors())
    return width is not None and not any(size % width for size in sizes)
