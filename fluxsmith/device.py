"""Which device and arithmetic to run with, and what to say where its memory is too small."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from fluxsmith.errors import UserError

SIGNS_OF_NO_MEMORY = ("t allocate memory", "out of memory", "bad_alloc", "overflowed")
# All that oneDNN says where it finds no room for its code or scratch space. What it can't do at all
# it refuses earlier, with more words.
ONEDNN_WITHOUT_MEMORY = (
    "could not create a memory object", "could not create a primitive",
    "could not execute a primitive",
)  # fmt: skip


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU; a device that is not there is a UserError."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    kind = name.partition(":")[0]
    if not available.get(kind, False):
        there = ", ".join(kind for kind, there in available.items() if there)
        raise UserError(f"device={name}: not available here; use auto or one of: {there}")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name}: no such device; use auto, cpu, cuda or mps") from None
    if kind == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name}: there are {torch.cuda.device_count()} CUDA devices")
    return device


def memory_of(device: torch.device) -> int:
    """The bytes of memory that the device has in all; 0 where nobody says."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0


@contextlib.contextmanager
def explaining_memory(trying: str, advice: str) -> Iterator[None]:
    """Running out of memory inside becomes a UserError: what was tried, what it took, what to do
    about it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        wanted = memory_wanted(error)
        if wanted is None:
            raise
        raise UserError(f"out of memory with {trying}: {wanted}; {advice}") from None


def memory_wanted(error: BaseException) -> str | None:
    """How much memory an error says was wanted; None where it is another kind of error."""
    text = str(error)
    if not (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or any(sign in text for sign in SIGNS_OF_NO_MEMORY)
        or text in ONEDNN_WITHOUT_MEMORY
    ):
        return None
    if overflowing := re.search(r"overflowed with sizes=(\[[^\]]*\])", text):
        return f"a tensor of {overflowing[1]} is larger than any memory"
    found = re.search(r"tried to allocate ([\d.]+) ?(\w+)", text, re.IGNORECASE)
    if not found:
        return "more was needed than there is"
    amount = f"{int(found[1]) / 2**30:.2f} GiB" if found[2] == "bytes" else f"{found[1]} {found[2]}"
    free = re.search(r"of which ([\d.]+ \w+) is free", text)
    return f"{amount} more were needed" + (f" and {free[1]} are free" if free else "")


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Moves a small tensor without making the host wait for what the device is doing."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def for_each(value: float | torch.Tensor, n: int, device: torch.device) -> torch.Tensor:
    """One number for each of n rows, or (n,) of them: (n,) float32 on the device. The host doesn't
    wait for what the device is doing."""
    if isinstance(value, torch.Tensor) and (
        value.ndim or value.requires_grad or value.device.type == device.type
    ):
        return to_device(value, device).float().expand(n)
    return torch.full((n,), float(value), device=device, dtype=torch.float32)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """bfloat16 autocast where `precision` asks for it; `auto` means on CUDA."""
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def computing_dtype(stored: torch.dtype) -> torch.dtype:
    """The dtype to compute in with weights that are stored in this one: its own, but bfloat16 for
    fp8, which nothing computes with as it is."""
    return stored if stored.itemsize > 1 else torch.bfloat16


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on the device; None where that can't be known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and Path("/proc/meminfo").is_file():
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    return None


def peak_memory(device: torch.device) -> int | None:
    """The most memory that this process has held on the device so far, in bytes: on CUDA what torch
    allocated, on the CPU what was resident, mapped files included; None where that isn't known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # First where Linux keeps it by process: getrusage counts the one that started this one too.
    with contextlib.suppress(OSError, LookupError):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
