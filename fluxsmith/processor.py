"""What Linux says of the processor."""

import platform
from pathlib import Path

from fluxsmith.errors import UserError

CPU_INFO = Path("/proc/cpuinfo")
FIRST = 8192  # characters of it, more than one core takes: a server describes hundreds, slowly


def described(info: Path = CPU_INFO) -> str:
    """Its first core's maker, model and instructions; nothing where that is not told."""
    try:
        with info.open() as file:
            return file.read(FIRST)
    except OSError:  # not Linux
        return ""


def name(info: Path = CPU_INFO) -> str:
    """Its model, such as AMD EPYC, where Linux says it; elsewhere the kind of machine."""
    lines = (line.partition(":") for line in described(info).splitlines())
    models = [value.strip() for key, _, value in lines if key.strip() == "model name"]
    return next(filter(None, models), platform.machine())


def instructions() -> str:
    """What its first core can execute, by Linux's names for it on x86 and Arm."""
    lines = described().splitlines()
    named = [line for line in lines if line.startswith(("flags", "Features"))]
    return f"{platform.machine()} {''.join(named[:1])}"


def has_avx512() -> bool:
    """Whether it has registers of 16 float32 numbers."""
    return "avx512f" in described()


def require_avx512() -> None:
    """Raises a UserError where it has none."""
    if not has_avx512():
        raise UserError("the processor has no AVX-512")
