"""This machine: its devices and dtypes, how much memory it has, and where caches lie."""

import contextlib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fluxsmith.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# The last is all that oneDNN says when memory is short; for unsupported operations it says more.
OUT_OF_MEMORY = re.compile(
    r"t allocate memory|out of memory|bad_alloc|overflowed|"
    r"^could not (create|execute) a (memory object|primitive)$"
)


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU; a device that is not there is a UserError."""
    counts = {"cuda": torch.cuda.device_count(), "mps": torch.mps.device_count(), "cpu": 1}
    there = [kind for kind, count in counts.items() if count]
    with contextlib.suppress(RuntimeError):  # torch's, for a name that no device has
        device = torch.device(there[0] if name == "auto" else name)
        if (device.index or 0) < counts.get(device.type, 0):
            return device
    raise UserError(f"device={name}: not available here; use auto or one of: {', '.join(there)}")


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Modules that are built inside have shapes and no values: they are on torch's meta device."""
    with torch.device("meta"), _NoNormal():
        yield


class _NoNormal(TorchFunctionMode):
    """Leaves out normal draws, for which torch imports its compiler on the meta device (1.2 s)."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        x = args[0] if args else named.get("tensor")
        if func is nn.init.normal_ and isinstance(x, Tensor) and x.is_meta:
            return x
        return func(*args, **named)


def named_dtype(name: str | None) -> torch.dtype | None:
    """The dtype that a --dtype option names, None without one; a UserError for an unknown name."""
    if name is not None and name not in DTYPES:
        raise UserError(f"--dtype {name}: must be one of {', '.join(DTYPES)}")
    return None if name is None else DTYPES[name]


def computing_dtype(network: torch.nn.Module) -> torch.dtype:
    """The dtype to compute in with weights as they are stored: that of most of them, but bfloat16
    for fp8, which torch can't compute with directly."""
    return dtype_of_most(network.parameters())


def dtype_of_most(weights: Iterable[torch.Tensor]) -> torch.dtype:
    """The same of tensors."""
    counts: Counter[torch.dtype] = Counter()
    for weight in weights:
        counts[weight.dtype] += weight.numel()
    ((most, _),) = counts.most_common(1)
    return most if most.itemsize > 1 else torch.bfloat16


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """bfloat16 autocast where `precision` asks for it; `auto` means on CUDA."""
    if autocasts(device, precision):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def autocasts(device: torch.device, precision: str) -> bool:
    return precision == "bfloat16" or (precision == "auto" and device.type == "cuda")


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Moves a small tensor without making the host wait for the device's queued work."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def for_each(value: float | torch.Tensor, n: int, device: torch.device) -> torch.Tensor:
    """One number for each of n rows, or (n,) of them: (n,) float32 on the device, without making
    the host wait for the device's queued work."""
    if isinstance(value, torch.Tensor) and (
        value.ndim or value.requires_grad or value.device.type == device.type
    ):
        return to_device(value, device).float().expand(n)
    return torch.full((n,), float(value), device=device, dtype=torch.float32)


def cache_folder() -> Path:
    """Where downloads and caches live: $FLUXSMITH_CACHE, else ~/.cache/fluxsmith."""
    if own := os.environ.get("FLUXSMITH_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fluxsmith"


def memory_of(device: torch.device) -> int:
    """The bytes of memory that the device has in all, or that may be used of it; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):  # Windows
        return 0
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()])


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on the device; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _from_proc("meminfo", "MemAvailable") if device.type == "cpu" else None
    used = resident_memory() or 0
    return None if free is None else max(0, min([free, *(limit - used for limit in _limits())]))


def _limits() -> Iterator[int]:
    """The most bytes that this process may have, by its own limits and its control group's."""
    with contextlib.suppress(ImportError):  # Windows
        import resource

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            if (limit := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY:
                yield limit
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of the second and first version
        with contextlib.suppress(OSError, ValueError):  # "max"
            yield int(Path("/sys/fs/cgroup", file).read_text(encoding="ascii"))


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process has held on the device so far: on CUDA what torch allocated,
    on the CPU what was resident, mapped files included; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "darwin":  # on Linux it also counts the process that started this one
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _from_proc("self/status", "VmHWM")


def reset_peak_memory(device: torch.device) -> None:
    """From now on `peak_memory` is of what comes, where the system can do that."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident_memory() -> int | None:
    """The bytes of memory that this process has now; None if unknown."""
    return _from_proc("self/status", "VmRSS")


def _from_proc(file: str, key: str) -> int | None:
    """The bytes that a line such as `VmHWM: 123 kB` of a file in Linux's /proc gives."""
    with contextlib.suppress(OSError, LookupError, ValueError):
        lines = Path("/proc", file).read_text(encoding="ascii", errors="replace").splitlines()
        return int(dict(line.split(":", 1) for line in lines)[key].split()[0]) * 1024
    return None


@contextlib.contextmanager
def explaining_memory(trying: str, advice: str) -> Iterator[None]:
    """Running out of memory inside becomes a UserError: what was tried, what it lacked, advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if (wanted := memory_wanted(error)) is None:
            raise
        raise UserError(f"out of memory with {trying}: {wanted}; {advice}") from None


def memory_wanted(error: BaseException) -> str | None:
    """How much memory an out-of-memory error asked for; None for any other error."""
    text = str(error)
    if not (isinstance(error, MemoryError) or OUT_OF_MEMORY.search(text)):
        return None
    if not (found := re.search(r"tried to allocate ([\d.]+) ?(\w+)", text, re.IGNORECASE)):
        return "more was needed than there is"
    amount = f"{int(found[1]) / 2**30:.2f} GiB" if found[2] == "bytes" else f"{found[1]} {found[2]}"
    free = re.search(r"of which ([\d.]+ \w+) is free", text)
    return f"{amount} more were needed" + (f" and {free[1]} are free" if free else "")
