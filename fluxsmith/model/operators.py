"""Operators of torch's own kind, which torch.compile calls and does not look into."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

# torch 2.6 can't tell an export from other compiling.
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)

_LIBRARY = torch.library.Library("fluxsmith", "FRAGMENT")


def define(
    schema: str,
    kernel: Callable[..., Any],
    shapes: Callable[..., Any],
    flops: Callable[..., int],
) -> None:
    """torch.ops.fluxsmith.NAME for CPUs, where the schema begins with its name.

    `shapes` makes empty tensors like its results; `flops` counts its operations, for
    `torch.utils.flop_counter`. Both are called with what the operator is called with.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
    _LIBRARY.impl(name, kernel, "CPU")
    _LIBRARY.impl(name, shapes, "Meta")

    @register_flop_formula(getattr(torch.ops.fluxsmith, name), get_raw=True)
    def count(*given: Any, out_val: Any = None) -> int:
        return flops(*given)


def called_as_usual() -> bool:
    """Whether neither torch.func, forward-mode differentiation nor an export is at work, which know
    nothing of our operators and take torch's instead."""
    if torch.compiler.is_compiling():
        return not is_exporting()
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


def batched(x: Tensor) -> bool:
    """Whether x is one of a batch that `torch.autograd.grad(is_grads_batched=True)` maps over."""
    return "Batched" in repr(torch._C._dispatch_keys(x))
