"""What all operators of our own have in common: how torch knows them, and second derivatives."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

# torch 2.6 can't tell an export from other compiling.
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)

_LIBRARY = torch.library.Library("fluxsmith", "FRAGMENT")
KERNELS: dict[str, Callable[..., Any]] = {}  # by name, as torch.ops.fluxsmith has them


def define(schema: str, kernel: Callable[..., Any]) -> None:
    """Makes torch.ops.fluxsmith.NAME for CPUs, which torch.compile calls and does not look into.

    `schema` begins with the name. The kernel makes the same tensors where they are `shapes_alone`,
    and leaves out the C++ then.
    """
    name = schema.partition("(")[0]
    KERNELS[name] = kernel
    _LIBRARY.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
    for device in ("CPU", "Meta"):
        _LIBRARY.impl(name, kernel, device)


def shapes_alone(x: Tensor) -> bool:
    """Whether x has a shape and no numbers: on torch's meta device, or while torch traces."""
    return x.untyped_storage().device.type == "meta"


def is_float32(x: Tensor) -> bool:
    """Whether this is what our operators compute with: float32 numbers on a CPU."""
    return x.dtype == torch.float32 and x.device.type == "cpu"


def called_plainly() -> bool:
    """Whether neither torch.func, forward-mode differentiation, an export, torch.jit.trace nor
    autocast is at work: they know nothing of our operators."""
    if torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling():
        return not is_exporting()
    if torch._C._get_tracing_state() is not None:
        return False
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


def wants_plain_backward(gradients: Sequence[Tensor]) -> bool:
    """Whether a backward pass is itself to be differentiated (`create_graph=True`), or is one of a
    batch of them (`is_grads_batched=True`). Our operators can do neither."""
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or any(
        "Batched" in repr(torch._C._dispatch_keys(g)) for g in gradients
    )


def plain_backward(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    gradients: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """The gradient of each input of `function`, which consists of torch's own operations, computed
    by calling it again. None for inputs that need no gradient."""
    differentiable_again = torch.is_grad_enabled()
    # Of torch's kinds of attention, only this one has second derivatives.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        # Views: a tensor may be given twice, or be made from another, and each gets its own share.
        own = [None if x is None else x.view_as(x) for x in inputs]
        outputs = function(*own)
    wanted = [x for x in own if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, gradients, create_graph=differentiable_again))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in own)
