"""Sums that do not depend on how many ranks there are: always in the same binary tree.

Floating-point addition is not associative, so the tree is part of the result. Its leaves are the
pieces of a batch, in order, a power of two: those of each rank are a tree of their own.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 2**25  # numbers that are summed over ranks at once

# Each rank's (m,) -> (n m,): output, then input. Its name until torch 2.12 is now deprecated.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Tree:
    """Adds up lists of tensors as they come, in a binary tree: of n lists, log2(n) in memory."""

    def __init__(self) -> None:
        self._sums: list[tuple[int, list[Tensor | None]]] = []  # of how many, and their sum

    def add(self, tensors: list[Tensor | None]) -> None:
        """Tensors that may be None, which counts as 0; they may be changed."""
        count = 1
        while self._sums and self._sums[-1][0] == count:
            _, before = self._sums.pop()
            tensors = [a if b is None else b if a is None else a.add_(b)
                       for a, b in zip(before, tensors, strict=True)]  # fmt: skip
            count *= 2
        self._sums.append((count, tensors))

    def total(self) -> list[Tensor | None]:
        """The sum of a power of two of lists, after which there are none."""
        ((_, found),), self._sums = self._sums, []
        return found


def tree_sum(parts: Tensor) -> Tensor:
    """(n, ...), n a power of two, -> (...)."""
    while len(parts) > 1:
        parts = parts[0::2] + parts[1::2]
    return parts[0]


def reduce_scatter(output: Tensor, given: Tensor, group: dist.ProcessGroup | None) -> None:
    """Each rank's (n m,), cut into n -> the sum of the own part (m,), in the order of ranks."""
    received = torch.empty_like(given)
    dist.all_to_all_single(received, given, group=group)
    output.copy_(tree_sum(received.view(dist.get_world_size(group), -1)))


def sum_over_ranks(tensors: Sequence[Tensor], group: dist.ProcessGroup | None, exact: bool) -> None:
    """Each tensor becomes its sum over the ranks: in the order of the tree where it has to be
    `exact`, else as the library likes."""
    n = dist.get_world_size(group)
    for bucket in _buckets(tensors):
        flat = torch.cat([x.flatten() for x in bucket])
        if exact:
            padded = torch.nn.functional.pad(flat, (0, -len(flat) % n))
            own = padded.new_empty(len(padded) // n)
            reduce_scatter(own, padded, group)
            all_gather(padded, own, group=group)
            flat = padded[: len(flat)]
        else:
            dist.all_reduce(flat, group=group)
        for x, total in zip(bucket, flat.split([x.numel() for x in bucket]), strict=True):
            x.copy_(total.view_as(x))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In order, those of one kind together up to BUCKET numbers."""
    bucket, size = list[Tensor](), 0
    for x in tensors:
        size += x.numel()
        if bucket and (size > BUCKET or bucket[0].dtype != x.dtype):
            yield bucket
            bucket, size = [], x.numel()
        bucket.append(x)
    if bucket:
        yield bucket
