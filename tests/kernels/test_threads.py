"""A container's quota bounds the threads."""

import os

import pytest

from fluxsmith.kernels.threads import cpu_quota, fit_threads


@pytest.mark.parametrize(
    ("files", "cpus", "set_before", "threads"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5, None, "1"),
        ({"cpu.max": "50000 100000\n"}, 0.5, None, "1"),
        ({"cpu.max": "100000 100000\n"}, 1, "7", "7"),
        ({"cpu.max": "max 100000\n"}, None, None, None),
        ({"cpu.max": "99999900000 100000\n"}, 999999, None, None),  # more than any machine has
        ({}, None, None, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5, None, "1"),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, None, None),
    ],
    ids=str,
)
def test_threads_fit_the_quota_unless_they_are_set(
    tmp_path, monkeypatch, files, cpus, set_before, threads
):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", set_before or "")
    if set_before is None:
        del os.environ["OMP_NUM_THREADS"]
    fit_threads(tmp_path)
    assert cpu_quota(tmp_path) == cpus
    assert os.environ.get("OMP_NUM_THREADS") == threads
