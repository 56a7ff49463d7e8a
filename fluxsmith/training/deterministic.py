"""Arithmetic that gives the same bits every time, on a GPU too."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, where wanted, torch takes deterministic kernels only, and cuBLAS a workspace of fixed
    size, without which it may split its sums differently (its documentation, "Results
    Reproducibility"). A CPU with a fixed number of threads is deterministic anyway."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    cudnn, tuned = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA first multiplies
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn, tuned
