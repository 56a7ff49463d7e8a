"""A device is picked where it is there and a user's mistake where not; autocast is as asked."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import needs_gpu

from fluxsmith.device import autocast, for_each, memory_wanted, pick_device
from fluxsmith.errors import UserError

CPU = torch.device("cpu")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA GPU")


def test_auto_picks_a_device_that_computes():
    assert torch.ones(3, device=pick_device("auto")).sum().item() == 3


def test_shapes_have_no_values_and_need_no_compiler():
    script = """
import sys, torch
from fluxsmith.device import shapes_only
with shapes_only():
    layer = torch.nn.Embedding(3, 4)
    real = torch.nn.init.normal_(torch.zeros(3, device="cpu"))
print(layer.weight.device, bool((real != 0).all()), "torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["meta", "True", "False"]


@no_gpu
def test_without_a_gpu_auto_is_the_cpu_or_mps():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("mps" if torch.backends.mps.is_available() else "cpu")


@no_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_cuda_without_a_gpu_says_what_there_is(name):
    with pytest.raises(UserError, match=f"^device={name}: not available.*cpu") as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tpu", "", "cpu:x", "meta"])
def test_a_device_of_no_known_name_is_a_mistake(name):
    with pytest.raises(UserError):
        pick_device(name)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
         "1610612736 bytes.", "1.50 GiB more were needed"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB "
         "of which 1.00 GiB is free.", "2.00 GiB more were needed and 1.00 GiB are free"),
        ("std::bad_alloc", "more was needed than there is"),
        ("could not create a primitive", "more was needed than there is"),
        ("could not create a primitive descriptor for the matmul primitive. Run workload with "
         "environment variable ONEDNN_VERBOSE=all to get additional diagnostic information.", None),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)", None),
    ],
)  # fmt: skip
def test_what_an_error_says_of_memory(said, wanted):
    assert memory_wanted(RuntimeError(said)) == wanted


@pytest.mark.parametrize("value", [0.25, torch.tensor(0.25), torch.full((3,), 0.25)])
def test_one_number_serves_every_row(value):
    assert for_each(value, 3, CPU).tolist() == [0.25, 0.25, 0.25]
    assert for_each(value, 3, CPU).dtype == torch.float32


def test_a_time_that_serves_every_row_can_be_derived_by():
    t = torch.tensor(0.25, requires_grad=True)
    for_each(t, 3, CPU).sum().backward()
    assert t.grad == 3


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_bfloat16_is_used_if_asked_for_and_by_default_on_a_gpu(device, precision):
    wanted = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    ones = torch.ones(2, 2, device=device)
    with autocast(device, precision):
        assert (ones @ ones).dtype == (torch.bfloat16 if wanted else torch.float32)


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_beyond_the_last_is_a_mistake():
    with pytest.raises(UserError):
        pick_device(f"cuda:{torch.cuda.device_count()}")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux keeps it by process")
def test_peak_memory_is_the_process_s_own():
    """Not that of the process which started it."""
    held = bytearray(b"1") * 700_000_000
    code = "import torch; from fluxsmith.device import *; print(peak_memory(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 50e6 < int(done.stdout) < len(held)
