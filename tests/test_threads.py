"""A container's quota bounds the threads."""

import os

import pytest

from fluxsmith.threads import cpu_quota, fit_threads


def group(tmp_path, line, files):
    own = tmp_path / "own"
    own.write_text(line + "\n")
    for name, text in files.items():
        file = tmp_path / "root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "root", own


@pytest.mark.parametrize(
    ("line", "files", "cpus"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/", {"cpu.max": "max 100000\n"}, None),
        ("0::/", {}, None),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, 4),
        ("0::/a/b", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "400000 100000"}, 3),
        ("0::/../../outside", {"cpu.max": "200000 100000"}, 2),
        (
            "4:cpu,cpuacct:/a",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "250000", "cpu,cpuacct/a/cpu.cfs_period_us": "1000"},
            250,
        ),
        (
            "1:cpu:/gone",
            {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            0.5,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("4:memory:/", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_the_strictest_quota_counts(tmp_path, line, files, cpus):
    assert cpu_quota(*group(tmp_path, line, files)) == cpus


def test_no_control_groups_no_quota(tmp_path):
    assert cpu_quota(tmp_path, tmp_path / "own") is None


@pytest.mark.parametrize(
    ("quota", "before", "after"),
    [
        ("50000", None, "1"),
        ("190000", None, "1"),
        ("100000", "7", "7"),
        ("max", None, None),
        ("99999900000", None, None),  # more than any machine has
    ],
)
def test_threads_fit_the_quota_unless_they_are_set(tmp_path, monkeypatch, quota, before, after):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if before is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", before)
    fit_threads(*group(tmp_path, "0::/", {"cpu.max": f"{quota} 100000"}))
    assert os.environ.get("OMP_NUM_THREADS") == after
    os.environ.pop("OMP_NUM_THREADS", None)  # of which monkeypatch doesn't know where it was unset
