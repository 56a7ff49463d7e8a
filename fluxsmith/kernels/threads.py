"""As many threads as a container may really use.

torch takes one for each core of the host. Where a container is allowed fewer (`docker run --cpus`,
a Kubernetes limit), more threads than the quota make each other wait.
"""

import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def fit_threads(root: Path = ROOT) -> None:
    """Bounds OpenMP's threads by the quota, before torch is imported; what is set already stays."""
    allowed = cpu_quota(root)
    if allowed is not None and allowed < cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(allowed))))


def cores() -> int:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = ROOT) -> float | None:
    """The CPUs that this container may use; None where nothing limits them. In a container the root
    of Linux's control groups is its own: `cpu.max` of version 2, or two files of version 1."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((root / name).read_text() for name in names).split()
            return int(quota) / int(period) if int(quota) > 0 else None
        except (OSError, ValueError):  # no such file; "max", without a limit
            continue
    return None
