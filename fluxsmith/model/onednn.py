"""Products of matrices by oneDNN, where it beats what torch takes by itself.

torch multiplies float32 matrices on a CPU with Intel's MKL, which leaves a good part of AMD's
processors with AVX-512 unused; oneDNN, which every x86 build of torch has inside it as well, does
not. Which of the two is taken follows from the processor and the sizes alone, so that a run resumed
on such a processor computes as the run did. `torch.backends.mkldnn.flags(enabled=False)` keeps to
MKL, but in compiled code, which does not look at it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fluxsmith.model import passes
from fluxsmith.model.layouts import laid_out
from fluxsmith.model.operators import called_as_usual, define
from fluxsmith.processor import CPU_INFO, described

# Multiplications in a product from which on oneDNN's longer way to the work, 0.2 ms there and back,
# is worth it.
WORTH = 1 << 24


def onednn_is_quicker(info: Path = CPU_INFO) -> bool:
    """Whether oneDNN beats MKL here: on AMD's processors with AVX-512, where that was measured."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, _OPERATOR):
        return False
    text = described(info)
    return "AuthenticAMD" in text and "avx512f" in text


def library() -> str:
    """Which library multiplies large float32 matrices on this machine's CPU."""
    return "oneDNN" if ONEDNN_IS_QUICKER and torch._C._get_mkldnn_enabled() else "torch"


def worth_it(xs: Sequence[Tensor], weight: Tensor) -> bool:
    """Whether the product of cat(xs) (..., k) and weight (n, k) is for oneDNN."""
    return (
        ONEDNN_IS_QUICKER
        and xs[0].device.type == "cpu"
        and xs[0].dtype == weight.dtype == torch.float32
        and sum(x.numel() for x in xs) * len(weight) >= WORTH
        and not torch.is_autocast_enabled("cpu")
        and (torch.compiler.is_compiling() or torch._C._get_mkldnn_enabled())
        and called_as_usual()
    )


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int], gelu: bool = False
) -> tuple[Tensor, ...]:
    """x weightᵀ + bias in pieces: x (..., k), weight (n, k), bias (n,) -> (..., size_i).

    float32 on an x86 CPU, without gradients. `sizes` add up to n; `gelu` passes the last piece
    through GELU's tanh form before it leaves the processor's registers.
    """
    return tuple(torch.ops.fluxsmith.linear.default(x, weight, bias, sizes, gelu))


def differentiable_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int], gelu: bool = False
) -> tuple[Tensor, ...]:
    """`linear` that gradients go through, once; with `gelu` where `passes` serve."""
    pieces: tuple[Tensor, ...] = _Linear.apply(x, weight, bias, sizes, gelu)
    return pieces


def joined_linear(xs: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """cat(xs) weightᵀ + bias, without gradients: the weight is cut, the inputs not joined."""
    y: Tensor = torch.ops.fluxsmith.joined_linear.default(xs, weight, bias)
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int], gelu: bool
    ) -> tuple[Tensor, ...]:
        pieces = linear(x, weight, bias, sizes)
        ctx.save_for_backward(x, weight, pieces[-1] if gelu else None)
        return (*pieces[:-1], passes.gelu(pieces[-1])) if gelu else pieces

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, before = ctx.saved_tensors
        to_x, to_weight, to_bias, *_ = ctx.needs_input_grad
        left = db = None
        rows = [g.reshape(-1, g.shape[-1]) for g in gradients]
        if passes.serve(rows[0], [g.shape[1] for g in rows]):
            if before is not None or to_weight or to_bias:
                gradients, left, db = passes.backward(rows, before, to_weight)
        else:
            if before is not None:
                last = before.reshape(rows[-1].shape)
                rows[-1] = torch.ops.aten.gelu_backward(rows[-1], last, approximate="tanh")
                gradients = tuple(rows)
            if to_weight and torch.compiler.is_compiling():
                # The transposed copy that oneDNN wants is written along with the gradients, for a
                # fifth of what it costs by itself.
                left = torch.cat([g.t() for g in rows]).contiguous()
            if to_bias:
                db = torch.cat([g.sum(dim=0) for g in rows])
        dx, dw = torch.ops.fluxsmith.linear_backward.default(
            gradients, left, x, weight, to_x, to_weight
        )
        return dx if to_x else None, dw if to_weight else None, db if to_bias else None, None, None


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, sizes: list[int], gelu: bool
) -> list[Tensor]:
    biases = bias.split(sizes) if bias is not None else [None] * len(sizes)
    after = [False] * (len(sizes) - 1) + [gelu]
    pieces = zip(laid_out(weight, sizes, 0, x), biases, after, strict=True)
    return [_multiply(x, w, b, activation) for w, b, activation in pieces]


def _linear_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, sizes: list[int], gelu: bool
) -> list[Tensor]:
    return [x.new_empty(*x.shape[:-1], size) for size in sizes]


def _joined_linear(xs: list[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    widths = [x.shape[-1] for x in xs]
    return _sum_of_products(xs, laid_out(weight, widths, 1, xs[0]), bias)


def _joined_shape(xs: list[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    return xs[0].new_empty(*xs[0].shape[:-1], len(weight))


def _backward(
    gradients: list[Tensor],
    left: Tensor | None,
    x: Tensor,
    weight: Tensor,
    to_x: bool,
    to_weight: bool,
) -> list[Tensor]:
    """The gradients of x and weight, empty where not wanted; `left` (n, ...) is the gradients'
    transpose, where there is a copy of it."""
    sizes = [g.shape[-1] for g in gradients]
    dx = x.new_empty(0)
    if to_x:
        dx = _input_gradient(gradients, weight.split(sizes)).view(x.shape)
    if not to_weight:
        return [dx, x.new_empty(0)]
    inputs = x.reshape(-1, x.shape[-1]).contiguous()  # it may be a view with gaps: see _multiply
    if left is not None:
        return [dx, _multiply(left, inputs.t(), None)]
    return [dx, _weight_gradient(gradients, inputs)]


def _backward_shapes(
    gradients: list[Tensor],
    left: Tensor | None,
    x: Tensor,
    weight: Tensor,
    to_x: bool,
    to_weight: bool,
) -> list[Tensor]:
    return [x.new_empty(x.shape if to_x else 0), x.new_empty(weight.shape if to_weight else 0)]


def _input_gradient(gradients: list[Tensor], weights: Sequence[Tensor]) -> Tensor:
    return _sum_of_products(gradients, [w.t() for w in weights], None)


def _weight_gradient(gradients: list[Tensor], x: Tensor) -> Tensor:
    """g_iᵀ x, one below the other. oneDNN copies the left factor: it pays for a narrow one."""
    rows = [g.reshape(-1, g.shape[-1]) for g in gradients]
    if len(rows) == 1:
        left = rows[0].t()
        return _multiply(left, x.t(), None) if x.shape[1] > len(left) else left @ x
    sizes = [g.shape[1] for g in rows]
    dw = x.new_empty(sum(sizes), x.shape[1])
    for g, out in zip(rows, dw.split(sizes), strict=True):
        torch.mm(g.t(), x, out=out)
    return dw


def _sum_of_products(
    xs: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None
) -> Tensor:
    """sum_i xs_i weights_iᵀ + bias, the sum taken inside the products."""
    y = _multiply(xs[0], weights[0], bias)
    for x, weight in zip(xs[1:], weights[1:], strict=True):
        y = torch.ops.mkldnn._linear_pointwise.binary(x, y, weight, None, "add")
    return y


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """x weightᵀ + bias; the weight may be laid out. Of one whose rows have gaps oneDNN has no quick
    product."""
    name, form = ("gelu", "tanh") if gelu else ("none", "")
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, name, [], form)
    return y


_OPERATOR = "_linear_pointwise"
ONEDNN_IS_QUICKER = onednn_is_quicker()

define(
    "linear(Tensor x, Tensor w, Tensor? b, int[] sizes, bool gelu) -> Tensor[]",
    _linear,
    _linear_shapes,
    lambda x, weight, *_: 2 * x.numel() * len(weight),
)
define(
    "joined_linear(Tensor[] xs, Tensor w, Tensor? b) -> Tensor",
    _joined_linear,
    _joined_shape,
    lambda xs, weight, *_: 2 * sum(x.numel() for x in xs) * len(weight),
)
define(
    "linear_backward(Tensor[] gs, Tensor? left, Tensor x, Tensor w, bool to_x, bool to_w)"
    " -> Tensor[]",
    _backward,
    _backward_shapes,
    lambda gs, left, x, weight, *wanted: sum(wanted) * 2 * x.numel() * len(weight),
)
