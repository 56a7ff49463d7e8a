"""As many threads as a container may really use.

torch takes one for each core of the host. Where a container is allowed fewer (`docker run --cpus`,
a Kubernetes limit), threads beyond the quota stop one another for most of every scheduling period.
"""

import os
from collections.abc import Callable
from pathlib import Path

Limit = Callable[[Path], float | None]  # of a group's folder

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def fit_threads(root: Path = ROOT, own: Path = OWN) -> None:
    """Bounds OpenMP's threads by the quota, before torch is imported; what is set already stays."""
    allowed = cpu_quota(root, own)
    if allowed is not None and allowed < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(allowed))))


def cpu_quota(root: Path = ROOT, own: Path = OWN) -> float | None:
    """The CPUs that this process's control group may use; None where nothing limits them.

    Linux's cgroup v2 (`cpu.max`) and v1 (`cpu.cfs_quota_us`), the strictest on the way up.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return None
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            limits += _on_the_way_up(root, path, _v2)
        elif "cpu" in controllers.split(","):
            limits += _on_the_way_up(root / controllers, path, _v1)
            limits += _on_the_way_up(root / "cpu", path, _v1)
    return min(limits, default=None)


def _on_the_way_up(mount: Path, path: str, read: Limit) -> list[float]:
    """The limits of a group and those above it, up to the one that is mounted here."""
    group = mount / path.lstrip("/")
    found = [read(folder) for folder in (group, *group.parents) if folder.is_relative_to(mount)]
    return [limit for limit in found if limit is not None]


def _v2(folder: Path) -> float | None:
    quota, period = _numbers(folder / "cpu.max", 2)
    return quota / period if quota is not None and period else None


def _v1(folder: Path) -> float | None:
    (quota,) = _numbers(folder / "cpu.cfs_quota_us", 1)
    (period,) = _numbers(folder / "cpu.cfs_period_us", 1)
    return quota / period if quota is not None and quota > 0 and period else None


def _numbers(file: Path, count: int) -> list[int | None]:
    """The numbers in a file, None for each that is not there."""
    try:
        words = file.read_text().split()
    except OSError:
        words = []
    found: list[int | None] = [int(word) if word.isdecimal() else None for word in words[:count]]
    return found + [None] * (count - len(found))
