"""AdamW's step, the gradient's clipping and the average of the weights in one pass of C++.

torch takes a pass over memory for each of them, and memory's pace is what they cost. State and
results are those of `torch.optim.AdamW`, so that either can go on from where the other stopped.
"""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fluxsmith import native
from fluxsmith.errors import UserError

SOURCE = Path(__file__).with_suffix(".cpp")

MOMENTS = ("exp_avg", "exp_avg_sq")  # as torch calls them

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
        *(
            (name, ctypes.c_float)
            for name in ("beta2", "epsilon", "rest1", "rest2", "scale", "average")
        ),
    )


def library() -> ctypes.CDLL | str:
    """The compiled C++, or why there is none."""
    found = native.library(SOURCE)
    if isinstance(found, ctypes.CDLL):
        found.norm.restype = ctypes.c_double
    return found


class OnePass:
    """One step's passes over the parameters that an optimiser trains."""

    def __init__(self, optimiser: torch.optim.AdamW, averages: Mapping[nn.Parameter, Tensor]):
        """Raises a UserError that says so where these are not for it."""
        found = library()
        if isinstance(found, str):
            raise UserError(found)
        if not _as_built(optimiser):
            raise UserError("the optimiser does more than AdamW")
        self._library = found
        self._optimiser = optimiser
        self._parameters = [p for group in optimiser.param_groups for p in group["params"]]
        self._table = np.zeros(len(self._parameters), _PARAMETER)
        # What the table points to lives as long as these.
        self._gradients = [p.grad for p in self._parameters]
        self._averages = [averages[p] for p in self._parameters]
        self._point("weight", self._parameters)
        self._point("gradient", self._gradients)
        self._point("average", self._averages)
        self._table["size"] = [p.numel() for p in self._parameters]
        for p in self._parameters:
            if optimiser.state.get(p):  # there is none before the first step
                for moment in MOMENTS:
                    _check(optimiser.state[p].get(moment), p)

    def norm(self) -> Tensor:
        """Of all gradients together, in float32: ()."""
        settings = self._settings()
        return torch.tensor(self._library.norm(ctypes.byref(settings)), dtype=torch.float32)

    @torch.no_grad()
    def step(self, scale: float, average: float) -> None:
        """Moves weights along the gradient times `scale`, then their average towards them by a
        share of `average`."""
        states = [_state(self._optimiser, p) for p in self._parameters]
        moments = [[state[name] for state in states] for name in MOMENTS]
        for name, tensors in zip(("mean", "square"), moments, strict=True):
            self._point(name, tensors)
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        t = torch.stack(steps).double().numpy()
        groups = self._optimiser.param_groups
        lr, decay = np.array([(g["lr"], g["weight_decay"]) for g in groups for _ in g["params"]]).T
        beta1, beta2 = groups[0]["betas"]
        self._table["keep"] = 1 - lr * decay
        self._table["rate"] = lr / (1 - beta1**t)
        self._table["root"] = (1 - beta2**t) ** -0.5
        settings = self._settings(
            beta2=beta2,
            epsilon=groups[0]["eps"],
            rest1=1 - beta1,
            rest2=1 - beta2,
            scale=scale,
            average=average,
        )
        self._library.step(ctypes.byref(settings))
        # So that autograd knows of it, as of any operation of torch that changes a tensor.
        for x in (*self._parameters, *self._averages, *moments[0], *moments[1]):
            torch.autograd.graph.increment_version(x)

    def _point(self, name: str, tensors: Sequence[Tensor | None]) -> None:
        given = zip(tensors, self._parameters, strict=True)
        self._table[name] = [_check(x, p).data_ptr() for x, p in given]

    def _settings(self, **numbers: float) -> _Settings:
        table = self._table
        return _Settings(len(table), torch.get_num_threads(), table.ctypes.data, **numbers)


def _state(optimiser: torch.optim.AdamW, p: nn.Parameter) -> dict[str, Any]:
    """AdamW's state of a parameter, as torch begins it."""
    state = optimiser.state[p]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(p, memory_format=torch.preserve_format)
    return state


def _as_built(optimiser: torch.optim.AdamW) -> bool:
    """Whether a step is AdamW's and nothing else: no hooks, no step of somebody's own."""
    groups = optimiser.param_groups
    return (
        type(optimiser) is torch.optim.AdamW
        and "step" not in vars(optimiser)
        and not optimiser._optimizer_step_pre_hooks
        and not optimiser._optimizer_step_post_hooks
        and not any(group["amsgrad"] or group["maximize"] for group in groups)
        and all(group["betas"] == groups[0]["betas"] for group in groups)
        and all(group["eps"] == groups[0]["eps"] for group in groups)
    )


def _check(x: Tensor | None, p: nn.Parameter) -> Tensor:
    if x is None:
        raise UserError("a parameter has no gradient, or no moment")
    if x.device.type != "cpu" or x.dtype != torch.float32 or not x.is_contiguous():
        raise UserError("a tensor is not one of float32 in memory, row by row")
    if x.shape != p.shape:
        raise UserError("a tensor is not of its parameter's shape")
    return x
