"""Joint attention in one pass of C++, from projections to outputs and back.

torch's operations read and write memory many times, and multiply matrices that are too small for
its libraries; `fused_attention.cpp` keeps a head in the nearest cache. It is compiled for each size
of head when one is first needed, which takes a second.
"""

import ctypes
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxsmith.kernels.cpu import build, features
from fluxsmith.kernels.cpu.operators import (
    define,
    is_float32,
    plain_backward,
    shapes_alone,
    wants_plain_backward,
)
from fluxsmith.model.attention import joint_attention, rms_norm
from fluxsmith.model.rope import RotaryTable

SOURCE = Path(__file__).with_suffix(".cpp")
LONGEST = 1024  # tokens; the weights of 2048 don't fit into a cache
LARGEST = 128  # size of a head


def serves(head_size: int) -> bool:
    """Whether heads of this size can be computed here."""
    return (
        0 < head_size <= LARGEST
        and features.fill_registers([head_size])
        and isinstance(_library(head_size), ctypes.CDLL)
    )


def fit(
    qkv: Sequence[Tensor],
    q_scales: Sequence[Tensor],
    k_scales: Sequence[Tensor],
    pe: RotaryTable,
    mask: Tensor | None,
) -> bool:
    """Whether `attention` can take these: the C++ checks nothing."""
    batch, _, width = qkv[0].shape
    size, length = len(q_scales[0]), sum(x.shape[1] for x in qkv)
    return (
        length <= LONGEST
        and (torch.compiler.is_compiling() or serves(size))  # a pickle may come from elsewhere
        and all(map(is_float32, (*qkv, *q_scales, *k_scales, *pe)))
        and width % (3 * size) == 0
        and all(x.ndim == 3 and x.shape[0] == batch and x.shape[2] == width for x in qkv)
        and all(x.shape == (size,) for x in (*q_scales, *k_scales))
        # One table for all samples, and none that is learned.
        and all(x.shape == (length, size // 2) and not x.requires_grad for x in pe)
        and (mask is None or (mask.shape == (batch, length) and mask.dtype == torch.bool))
    )


def attention(
    qkv: Sequence[Tensor],
    q_scales: Sequence[Tensor],
    k_scales: Sequence[Tensor],
    pe: RotaryTable,
    mask: Tensor | None,
) -> tuple[Tensor, ...]:
    """`model.attention.joint_attention` of float32 tensors on a CPU, up to LONGEST tokens.

    A stream brings its projections (b, l_i, 3*h*k) and the scales (k,) of its normalised queries
    and keys; `pe` is one table (l, k/2) for all samples. Returns (b, l_i, h*k) each.
    """
    pieces: tuple[Tensor, ...] = _Attention.apply(*pe, mask, *qkv, *q_scales, *k_scales)
    return pieces


def by_torch(cos: Tensor, sin: Tensor, mask: Tensor | None, *streams: Tensor) -> tuple[Tensor, ...]:
    """The same by torch's own operations, of what `_Attention` is given."""
    qkv, q_scales, k_scales = _thirds(streams)
    norms = [partial(_normalised, scales) for scales in zip(q_scales, k_scales, strict=True)]
    heads = qkv[0].shape[2] // (3 * len(q_scales[0]))
    return joint_attention(list(zip(qkv, norms, strict=True)), heads, (cos, sin), mask)


def _normalised(scales: tuple[Tensor, Tensor], q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return rms_norm(q, scales[0]), rms_norm(k, scales[1])


def _library(size: int) -> ctypes.CDLL | str:
    """What computes heads of this size, or why there is none."""
    return build.library(SOURCE, HEAD_SIZE=size)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cos: Tensor, sin: Tensor, mask: Tensor | None, *streams: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin, mask, *streams)
        return tuple(torch.ops.fluxsmith.attention.default(*_thirds(streams), cos, sin, mask))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        cos, sin, mask, *streams = ctx.saved_tensors
        if wants_plain_backward(gradients):
            return plain_backward(by_torch, ctx.saved_tensors, gradients)
        backward = torch.ops.fluxsmith.attention_backward.default
        return (None, None, None, *backward(gradients, *_thirds(streams), cos, sin, mask))


def _thirds(streams: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
    """Projections, scales of queries and scales of keys."""
    n = len(streams) // 3
    return streams[:n], streams[n : 2 * n], streams[2 * n :]


def _forward(
    qkv: list[Tensor], q_scales: list[Tensor], k_scales: list[Tensor], *shared: Any
) -> list[Tensor]:
    outs = [x.new_empty(*x.shape[:2], x.shape[2] // 3) for x in qkv]
    _run((qkv, q_scales, k_scales), [], (outs,), *shared)
    return outs


def _backward(
    gradients: list[Tensor],
    qkv: list[Tensor],
    q_scales: list[Tensor],
    k_scales: list[Tensor],
    *shared: Any,
) -> list[Tensor]:
    found = [x.new_empty(x.shape) for x in (*qkv, *q_scales, *k_scales)]
    _run((qkv, q_scales, k_scales), gradients, _thirds(found), *shared)
    return found


def _run(
    given: Sequence[Sequence[Tensor]],
    gradients: Sequence[Tensor],
    made: Sequence[Sequence[Tensor]],
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
) -> None:
    """Runs the C++: forward, or back where there are gradients. `given` and `made` have a list for
    each part that streams consist of."""
    # The C++ wants tensors without gaps; copies live as long as these names.
    cos, sin, mask = cos.contiguous(), sin.contiguous(), None if mask is None else mask.contiguous()
    given = [[x.contiguous() for x in part] for part in given]
    douts = [_evenly_spaced(x) for x in gradients]
    if shapes_alone(given[0][0]):
        return
    qkv, size = given[0], len(given[1][0])
    fields: list[int | Tensor | None] = []  # of each `Stream` of the C++
    for i, x in enumerate(qkv):
        fields += [x.shape[1], *(part[i] for part in given)]
        back = [None, *douts[i]] if gradients else []
        fields += [*back, *(part[i] for part in made)]
        fields += [None] * (10 * (i + 1) - len(fields))
    streams = build.words(*fields)
    problem = build.words(
        len(qkv[0]), qkv[0].shape[2] // (3 * size), torch.get_num_threads(), len(qkv),
        ctypes.addressof(streams), cos, sin, mask,
    )  # fmt: skip
    library = _library(size)
    assert isinstance(library, ctypes.CDLL), library
    library.attention(problem, ctypes.c_int32(bool(gradients)))


def _evenly_spaced(x: Tensor) -> tuple[Tensor, int]:
    """x (b, l, d) with the distance from each token to the next; a copy where they differ.

    What comes back from a layer that has more inputs than the attention is cut, not copied.
    """
    b, length, d = x.shape
    step = x.stride(1) if length > 1 else x.stride(0)
    if x.stride(2) == 1 and (b == 1 or x.stride(0) == length * step):
        return x, step
    return x.reshape(b * length, d).contiguous(), d


_GIVEN = "Tensor[] qkv, Tensor[] q_scales, Tensor[] k_scales, Tensor cos, Tensor sin, Tensor? mask"
define(f"attention({_GIVEN}) -> Tensor[]", _forward)
define(f"attention_backward(Tensor[] gradients, {_GIVEN}) -> Tensor[]", _backward)
