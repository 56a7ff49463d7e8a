"""What the machine itself can do, measured beside whatever is held against it."""

import statistics

import torch

from fluxsmith.benchmark.timing import seconds

ROUNDS = 5


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large square product, the median of a few: what a network can at best reach."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(a)

    def product() -> None:
        torch.mm(a, b, out=out)

    product()
    return 2 * size**3 / statistics.median(seconds(product, device) for _ in range(ROUNDS))


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
