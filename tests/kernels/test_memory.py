"""What training frees stays with the process, or goes back to the system."""

import platform
import subprocess
import sys

import pytest

from fluxsmith.kernels.memory import keep_freed_memory

SCRIPT = """
import resource, sys
from fluxsmith.kernels.memory import keep_freed_memory
import torch
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    blocks = [torch.zeros(12 << 20) for _ in range(2)]  # 48 MiB each
for _ in range(20): work()  # the heap finds its size in 5 to 8
before = faults()
for _ in range(5): work()
print(faults() - before)
"""


HOLES = """
import sys
from fluxsmith.device import resident_memory
from fluxsmith.kernels.memory import give_back_freed_memory
import torch
if sys.argv[1] == "give":
    assert give_back_freed_memory()
def work():
    blocks, small = [], []
    for _ in range(8):
        blocks.append(torch.zeros(5 << 20))  # 20 MiB
        small.append(torch.zeros(1 << 14))  # which stays, and lies between them
    return small
before = resident_memory()
kept = [work() for _ in range(3)]
print((resident_memory() - before) >> 20)
"""


def printed(script: str, how: str) -> int:
    command = [sys.executable, "-c", script, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not on glibc")
def test_freed_memory_is_not_asked_for_again():
    assert printed(SCRIPT, "keep") < 100 < printed(SCRIPT, "leave")


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not on glibc")
def test_freed_memory_goes_back_though_something_lies_behind_it():
    assert printed(HOLES, "give") < 20 < printed(HOLES, "leave")


def test_the_users_own_settings_of_malloc_stay():
    assert not keep_freed_memory({"MALLOC_TRIM_THRESHOLD_": "100000"})
