"""AdamW's step, the gradient's clipping and the average of the weights in one pass of C++.

torch takes a pass over memory for each of them, and memory's pace is what they cost. State and
results are those of `torch.optim.AdamW`, so that either can go on from where the other stopped.
"""

import ctypes
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fluxsmith import native
from fluxsmith.errors import UserError

SOURCE = Path(__file__).with_suffix(".cpp")

# As in the C++.
_PARAMETER = np.dtype(
    [
        ("size", np.int64),
        *((name, np.uintp) for name in ("weight", "gradient", "mean", "square", "average")),
        *((name, np.float32) for name in ("keep", "rate", "root")),
    ],
    align=True,
)


class _Settings(ctypes.Structure):
    """As in the C++."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("parameters", ctypes.c_void_p),
        *((name, ctypes.c_float) for name in ("beta1", "beta2", "epsilon", "scale", "average")),
    )


@functools.cache
def library() -> ctypes.CDLL | UserError:
    """The compiled C++, or why there is none."""
    if sys.platform != "linux":
        return UserError("this is not Linux")
    try:
        loaded = native.load(SOURCE)
    except UserError as error:
        return error
    loaded.norm.restype = ctypes.c_double
    return loaded


class OnePass:
    """One step's passes over the parameters that an optimiser trains."""

    def __init__(self, optimiser: torch.optim.AdamW, averages: Mapping[nn.Parameter, Tensor]):
        """Raises a UserError that says so where these are not for it."""
        found = library()
        if isinstance(found, UserError):
            raise found
        self._library = found
        self._optimiser = optimiser
        self._parameters = [p for group in optimiser.param_groups for p in group["params"]]
        self._table = np.zeros(len(self._parameters), _PARAMETER)
        self._point("weight", self._parameters)
        self._point("gradient", [p.grad for p in self._parameters])
        self._point("average", [averages[p] for p in self._parameters])
        self._table["size"] = [p.numel() for p in self._parameters]
        for state in optimiser.state.values():  # empty before the first step
            for moment in ("exp_avg", "exp_avg_sq"):
                _check(state[moment])

    def norm(self) -> Tensor:
        """Of all gradients together, in float32: ()."""
        settings = self._settings()
        return torch.tensor(self._library.norm(ctypes.byref(settings)), dtype=torch.float32)

    @torch.no_grad()
    def step(self, scale: float, average: float) -> None:
        """Moves weights along the gradient times `scale`, then their average towards them by a
        share of `average`."""
        states = [_state(self._optimiser, p) for p in self._parameters]
        self._point("mean", [state["exp_avg"] for state in states])
        self._point("square", [state["exp_avg_sq"] for state in states])
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        t = torch.stack(steps).double().numpy()
        rates = [
            (g["lr"], g["weight_decay"]) for g in self._optimiser.param_groups for _ in g["params"]
        ]
        lr, decay = np.array(rates).T
        beta1, beta2 = self._optimiser.defaults["betas"]
        self._table["keep"] = 1 - lr * decay
        self._table["rate"] = lr / (1 - beta1**t)
        self._table["root"] = (1 - beta2**t) ** -0.5
        settings = self._settings(
            beta1=beta1,
            beta2=beta2,
            epsilon=self._optimiser.defaults["eps"],
            scale=scale,
            average=average,
        )
        self._library.step(ctypes.byref(settings))

    def _point(self, name: str, tensors: Sequence[Tensor | None]) -> None:
        self._table[name] = [_check(x).data_ptr() for x in tensors]

    def _settings(self, **numbers: float) -> _Settings:
        table = self._table
        return _Settings(len(table), torch.get_num_threads(), table.ctypes.data, **numbers)


def _state(optimiser: torch.optim.AdamW, p: nn.Parameter) -> dict[str, Any]:
    """AdamW's state of a parameter, as torch begins it."""
    state = optimiser.state[p]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
    return state


def _check(x: Tensor | None) -> Tensor:
    if x is None:
        raise UserError("a parameter has no gradient")
    if x.device.type != "cpu" or x.dtype != torch.float32 or not x.is_contiguous():
        raise UserError("a tensor is not one of float32 in memory, row by row")
    return x
