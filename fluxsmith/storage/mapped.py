"""Files mapped into memory as tensors, whose pages can be given back."""

import mmap
import weakref
from pathlib import Path

import torch
from torch import Tensor

_MAPS: "weakref.WeakSet[mmap.mmap]" = weakref.WeakSet()


class MappedFile:
    """A file in memory: its pages are read when they are first used. Writing to a tensor changes
    the tensor, never the file."""

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        _MAPS.add(self._map)

    def tensor(self, start: int, like: Tensor) -> Tensor:
        """The tensor at this byte, of the shape and dtype of another."""
        if not like.numel():
            return torch.empty_like(like)
        flat = torch.frombuffer(self._map, dtype=like.dtype, count=like.numel(), offset=start)
        return flat.view(like.shape)


def release(tensor: Tensor) -> None:
    """Gives back the memory of a tensor that is mapped from a file; used again, it is read again.
    Does nothing to other tensors, and where the system can't."""
    if tensor.device.type != "cpu" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    for mapped in list(_MAPS):
        start = tensor.data_ptr() - torch.frombuffer(mapped, dtype=torch.uint8, count=1).data_ptr()
        if 0 <= start < len(mapped):
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # pages that are its own alone
            if length := max(0, start + tensor.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE:
                mapped.madvise(mmap.MADV_DONTNEED, first, length)
            return
