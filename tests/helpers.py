"""What several test modules need."""

import shutil
from typing import Any

import pytest
import torch

from fluxsmith import processor

# Not that a library is there: one that can't be compiled is a fault.
needs_avx512 = pytest.mark.skipif(not processor.has_avx512(), reason="the processor has no AVX-512")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++")


def randomise(module: torch.nn.Module, scale: float = 0.1) -> torch.nn.Module:
    """Gives every parameter random values: a new network would predict 0 whatever its input."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))
    return module


def assert_agree(ours: torch.Tensor, theirs: torch.Tensor, within: float) -> None:
    """Equal everywhere but for `within`. Says the largest difference, which `pytest -rP` shows."""
    largest = (ours - theirs).abs().max().item()
    print(f"largest difference {largest:.1e}, allowed {within:.0e}, deviation {theirs.std():.2g}")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=within)


def same(a: Any, b: Any) -> bool:
    """Whether two nested structures are equal, tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
