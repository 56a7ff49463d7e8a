"""What a CUDA graph does, for operations on the CPU: those of some work are noted, with the tensors
that they read and write, and called again at a replay.

As on a GPU, a capture computes nothing: what the work wrote is put back, and what it made is
filled with NaN. A number that the work takes from Python is the same at every replay, and a look at
a number on the device is an error. What doesn't go through torch's dispatcher isn't seen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

LOOKS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "_unique2", "masked_select"}


class ByOperations:
    """A capture, as `fluxsmith.kernels.cuda_graphs` wants it."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.captured: list[int] = []  # operations, by capture
        self.replays = 0

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        yield

    def __call__(self, work: Callable[[], object]) -> Callable[[], object]:
        noted = _Noted()
        try:
            with noted:
                work()
        finally:
            noted.undo()
        self.captured.append(len(noted.calls))

        def replay() -> None:
            self.replays += 1
            noted.replay()

        return replay


class _Noted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []
        self._made: dict[int, Tensor] = {}  # by storage: what no graph could have met before
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # what was written to, and its values

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.name.partition("::")[2] in LOOKS:
            raise RuntimeError(f"{func} looks at a number on the device")
        given = tensors((args, kwargs))
        known = {place(x) for x in given}
        for x in given:
            if place(x) not in self._made and place(x) not in self._before:
                self._before[place(x)] = (whole(x), whole(x).clone())
        noted = tree_map_only(Tensor, Tensor.detach, (args, kwargs))  # with the shapes of now
        out = func(*args, **kwargs)
        results = [x.detach() for x in tensors(out)]
        for x in results:
            if place(x) not in known:
                self._made[place(x)] = x
        if torch.Tag.inplace_view not in func.tags:  # that changes a shape alone
            self.calls.append((func, *noted, results))
        return out

    def undo(self) -> None:
        with torch.no_grad():
            for x, values in self._before.values():
                x.copy_(values)
            for x in self._made.values():
                if x.is_floating_point():
                    whole(x).fill_(torch.nan)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, results in self.calls:
            again = tensors(func(*args, **kwargs))
            for x, value in zip(results, again, strict=True):
                if place(x) != place(value):
                    x.copy_(value)


def tensors(value: Any) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


def place(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def whole(x: Tensor) -> Tensor:
    """All of its storage, one after the other."""
    return torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
