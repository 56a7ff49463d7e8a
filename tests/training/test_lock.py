"""A run's folder belongs to one process that is alive."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from fluxsmith.training.lock import FolderLock, FolderTakenError, is_taken

HOLD = """
import os, sys
from pathlib import Path
from fluxsmith.training.lock import FolderLock

lock = FolderLock(Path(sys.argv[1]))
lock.take()
print("taken", flush=True)
sys.stdin.read()
os._exit(1)  # as a crash: nothing is released, and the file stays
"""


def test_a_lock_is_known_to_others_and_ends_with_its_process(tmp_path):
    assert not is_taken(tmp_path / "none") and not is_taken(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline().split() == [b"taken"]
    assert is_taken(tmp_path) and is_taken(tmp_path)
    with pytest.raises(FolderTakenError, match=f"process {holder.pid} on"):
        FolderLock(tmp_path).take()
    holder.stdin.close()
    holder.wait()
    assert (tmp_path / ".lock").exists() and not is_taken(tmp_path)
    with FolderLock(tmp_path) as lock:
        lock.take()
    assert not (tmp_path / ".lock").exists()


def test_threads_of_a_run_whose_folder_was_deleted_take_it_together(tmp_path):
    """Its checkpoint's thread and its training's come to it in the same moment."""
    with FolderLock(tmp_path / "run") as lock, ThreadPoolExecutor(8) as threads:
        for _ in range(200):
            lock.take()
            shutil.rmtree(tmp_path / "run")
            list(threads.map(lambda _: lock.take(), range(8)))  # none of them raises
