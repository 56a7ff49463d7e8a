"""What the machine itself can do, measured beside whatever is held against it."""

import statistics
from collections.abc import Callable

import torch

from fluxsmith.benchmark.timing import seconds
from fluxsmith.model import onednn

ROUNDS = 5


def product_size(device: torch.device) -> int:
    return 8192 if device.type == "cuda" else 2048


def product_flops(device: torch.device) -> int:
    """Of each of `matrix_products`."""
    return 2 * product_size(device) ** 3


def matrix_products(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """A large square product, by each library that may take it: the best a network can reach."""
    size = product_size(device)
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(a)
    calls: dict[str, Callable[[], object]] = {"torch": lambda: torch.mm(a, b, out=out)}
    if onednn.worth_it((a,), b):
        calls["oneDNN"] = lambda: onednn.linear(a, b, None, (size,))
    return calls


def memory_bandwidth(device: torch.device) -> float:
    """Bytes/s, read and written, of copying what no cache holds."""
    count = 1 << (30 if device.type == "cuda" else 26)
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    copy()
    moved = 2 * count * source.element_size()
    return moved / statistics.median(seconds(copy, device) for _ in range(ROUNDS))
