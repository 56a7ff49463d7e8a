"""Linear layers, and the GELU that follows some of them, by the quicker of two libraries.

The products are oneDNN's or torch's own (MKL's). Around them torch takes many passes over memory:
GELU, its gradient, the sums for the bias, the transposed copy for the weights' gradient. Here each
direction takes one pass, in C++ (`gelu_linear.cpp`).
"""

import ctypes
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxsmith.kernels.cpu import build, features, onednn
from fluxsmith.kernels.cpu.operators import (
    define,
    plain_backward,
    shapes_alone,
    wants_plain_backward,
)

SOURCE = Path(__file__).with_suffix(".cpp")


def library() -> ctypes.CDLL | str:
    """The compiled C++, or why there is none."""
    return build.library(SOURCE)


def serves(sizes: Sequence[int]) -> bool:
    """Whether a layer with outputs in pieces of these widths can be computed here."""
    return features.fill_registers(sizes) and isinstance(library(), ctypes.CDLL)


def gelu_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int], gelu: bool = True
) -> tuple[Tensor, ...]:
    """x weightᵀ + bias in pieces (..., size_i), the last of them through GELU's tanh form.

    x (..., k), weight (n, k), bias (n,): float32 on a CPU. `sizes` add up to n.
    """
    if torch.is_grad_enabled():
        pieces: tuple[Tensor, ...] = _GeluLinear.apply(x, weight, bias, sizes, gelu)
        return pieces
    return tuple(torch.ops.fluxsmith.gelu_linear.default(x, weight, bias, sizes, gelu, False))


def by_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int], gelu: bool
) -> tuple[Tensor, ...]:
    """`gelu_linear` by torch's own operations."""
    *others, last = F.linear(x, weight, bias).split(list(sizes), dim=-1)
    return (*others, F.gelu(last, approximate="tanh") if gelu else last)


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int], gelu: bool
    ) -> tuple[Tensor, ...]:
        found = torch.ops.fluxsmith.gelu_linear.default(x, weight, bias, sizes, gelu, gelu)
        ctx.save_for_backward(x, weight, bias, found[-1] if gelu else None)
        ctx.sizes, ctx.gelu = sizes, gelu
        return tuple(found[: len(sizes)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, bias, before = ctx.saved_tensors
        if wants_plain_backward(gradients):
            again = partial(by_torch, sizes=ctx.sizes, gelu=ctx.gelu)
            return (*plain_backward(again, (x, weight, bias), gradients), None, None)
        wanted = list(ctx.needs_input_grad[:3])
        backward = torch.ops.fluxsmith.gelu_linear_backward.default
        found = backward(gradients, before, x, weight, *wanted)
        return (*(g if want else None for g, want in zip(found, wanted, strict=True)), None, None)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, sizes: list[int], gelu: bool, keep: bool
) -> list[Tensor]:
    """The pieces and, with `keep`, what GELU was applied to."""
    if onednn.worth_it(x, weight):
        pieces = onednn.linear(x, weight, bias, sizes, gelu and not keep)
        if not (gelu and keep):
            return pieces
    else:
        biases = bias.split(sizes) if bias is not None else [None] * len(sizes)
        pieces = [F.linear(x, w, b) for w, b in zip(weight.split(sizes), biases, strict=True)]
        if not gelu:
            return pieces
    before = pieces[-1]
    pieces[-1] = torch.empty_like(before) if keep else before
    if not shapes_alone(before):
        given = build.words(before, pieces[-1], before.numel(), torch.get_num_threads())
        _library().forward(*map(ctypes.c_int64, given))
    return [*pieces, before] if keep else pieces


def _backward(
    gradients: list[Tensor], before: Tensor | None, x: Tensor, weight: Tensor,
    to_x: bool, to_weight: bool, to_bias: bool,
) -> list[Tensor]:  # fmt: skip
    """The gradients of x, weight and bias, empty where not wanted."""
    rows = [g.reshape(-1, g.shape[-1]) for g in gradients]
    inputs = x.reshape(-1, x.shape[-1])
    by_onednn = onednn.worth_it(x, weight)
    rows, transposed, sums = backward_passes(rows, before, by_onednn and to_weight)
    weights = weight.split([g.shape[1] for g in rows])
    dx, dw = x.new_empty(0), x.new_empty(0)
    if to_x and by_onednn:
        dx = onednn.sum_of_products(rows, [w.t() for w in weights])
    elif to_x:
        dx = rows[0] @ weights[0]
        for g, w in zip(rows[1:], weights[1:], strict=True):
            dx.addmm_(g, w)
    if transposed is not None:
        dw = onednn.product(transposed, inputs.contiguous().t())
    elif to_weight:
        dw = torch.empty_like(weight)
        for g, to in zip(rows, dw.split([g.shape[1] for g in rows]), strict=True):
            torch.mm(g.t(), inputs, out=to)
    return [dx.view(x.shape) if to_x else dx, dw, sums if to_bias else x.new_empty(0)]


def backward_passes(
    gradients: Sequence[Tensor], before: Tensor | None, transpose: bool
) -> tuple[list[Tensor], Tensor | None, Tensor]:
    """What the products of a backward pass need of the output's gradients, pieces (r, n_i).

    `before` (..., n_last) is what GELU was applied to in the last piece. Returns the gradients
    through GELU, (r, n_i); where asked for their transpose, (sum of n_i, r); their sums over rows.
    """
    # The C++ wants rows without gaps inside them; copies live as long as this name.
    given = [g if g.stride(1) == 1 else g.contiguous() for g in gradients]
    height, width = len(given[0]), sum(g.shape[1] for g in given)
    through = list(given)
    fields: list[int | Tensor | None] = []  # of each `Piece` of the C++
    for g in given:
        fields += [g.shape[1], g, g.stride(0), None, None]
    if before is not None:
        before = before.contiguous()
        through[-1] = before.new_empty(height, before.shape[-1])
        fields[-2:] = before, through[-1]
    transposed = given[0].new_empty(width, height) if transpose else None
    sums = given[0].new_empty(width)
    if not shapes_alone(sums):
        pieces, threads = build.words(*fields), torch.get_num_threads()
        address = ctypes.addressof(pieces)
        _library().backward(build.words(height, threads, len(given), address, transposed, sums))
    return [g.contiguous() for g in through], transposed, sums


def _library() -> ctypes.CDLL:
    found = library()
    assert isinstance(found, ctypes.CDLL), found  # as `serves` says
    return found


define(
    "gelu_linear(Tensor x, Tensor w, Tensor? b, int[] sizes, bool gelu, bool keep) -> Tensor[]",
    _forward,
)
define(
    "gelu_linear_backward(Tensor[] gradients, Tensor? before, Tensor x, Tensor w,"
    " bool to_x, bool to_w, bool to_b) -> Tensor[]",
    _backward,
)
