"""Joint attention in one pass of C++, from projections to outputs and back.

torch's operations go over memory many times, and multiply matrices that are too small for its
libraries; `fused_attention.cpp` keeps a head in the nearest caches. A compiler makes a library of
it for each size of head where one is first needed, which takes a second, and is found again later.
Without a compiler, torch's operations serve.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxsmith import native
from fluxsmith.model.attention import attention_of_projections
from fluxsmith.model.operators import batched, called_as_usual, define
from fluxsmith.model.rope import RotaryTable

SOURCE = Path(__file__).with_suffix(".cpp")
LONGEST = 1024  # tokens; with 2048, all their weights are too many for a cache
WIDTH, LARGEST = 16, 128  # the size of a head is a multiple of the one, up to the other


def serves(
    qkv: Sequence[Tensor],
    q_scales: Sequence[Tensor],
    k_scales: Sequence[Tensor],
    num_heads: int,
    pe: RotaryTable,
    mask: Tensor | None,
) -> bool:
    """Whether `attention` can have these, and gains by it. What is amiss is for torch to say."""
    size = len(q_scales[0])
    return (
        _fit(qkv, q_scales, k_scales, *pe, mask)
        and sum(x.shape[1] for x in qkv) <= LONGEST
        and qkv[0].shape[2] == 3 * num_heads * size
        and not (pe[0].requires_grad or pe[1].requires_grad)
        and called_as_usual()
        and why_not(size) == ""
    )


def why_not(size: int) -> str:
    """Why this machine has no library for heads of this size; nothing where it has."""
    found = _library(size)
    return found if isinstance(found, str) else ""


# What torch.compiler.assume_constant_result sets; calling it would import torch's compiler, which
# takes a second that only those who compile have to wait.
setattr(why_not, "_dynamo_marked_constant", True)  # noqa: B010 (not declared)


def _library(size: int) -> ctypes.CDLL | str:
    """What computes heads of this size, made where it is first asked for, or why there is none."""
    return native.library(SOURCE, HEAD_SIZE=size)


def _fit(
    qkv: Sequence[Tensor],
    q_scales: Sequence[Tensor],
    k_scales: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
) -> bool:
    """Whether types and shapes are those of one attention: the C++ looks at none."""
    batch, _, width = qkv[0].shape
    size, length = len(q_scales[0]), sum(x.shape[1] for x in qkv)
    return (
        all(
            x.device.type == "cpu" and x.dtype == torch.float32
            for x in (*qkv, *q_scales, *k_scales, cos, sin)
        )
        and size % WIDTH == 0
        and 0 < size <= LARGEST
        and width % (3 * size) == 0
        and all(x.ndim == 3 and x.shape[0] == batch and x.shape[2] == width for x in qkv)
        and all(x.shape == (size,) for x in (*q_scales, *k_scales))
        and cos.shape == sin.shape == (length, size // 2)
        and (mask is None or (mask.shape == (batch, length) and mask.dtype == torch.bool))
        and (mask is None or mask.device.type == "cpu")
    )


def attention(
    qkv: Sequence[Tensor],
    q_scales: Sequence[Tensor],
    k_scales: Sequence[Tensor],
    pe: RotaryTable,
    mask: Tensor | None,
) -> tuple[Tensor, ...]:
    """`attention_of_projections`, of what `serves` says yes to."""
    pieces: tuple[Tensor, ...] = _Attention.apply(*pe, mask, *qkv, *q_scales, *k_scales)
    return pieces


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
        if not torch.compiler.is_compiling() and (
            (further := torch.is_grad_enabled()) or any(map(batched, gradients))
        ):
            # The gradient is to have a gradient itself, or is one of a batch: torch's operations
            # know how.
            return (None, None, None, *_by_torch(gradients, streams, (cos, sin), mask, further))
        backward = torch.ops.fluxsmith.attention_backward.default
        return (None, None, None, *backward(gradients, *_thirds(streams), cos, sin, mask))


def _by_torch(
    gradients: Sequence[Tensor],
    streams: Sequence[Tensor],
    pe: RotaryTable,
    mask: Tensor | None,
    further: bool,
) -> list[Tensor | None]:
    with torch.enable_grad():
        # Views: a tensor may be there twice, or be made from another, and each gets its own part.
        own = [x.view_as(x) for x in streams]
        qkv, q_scales, k_scales = _thirds(own)
        outs = attention_of_projections(qkv, q_scales, k_scales, pe, mask)
    wanted = [x for x in own if x.requires_grad]
    found = iter(torch.autograd.grad(outs, wanted, gradients, create_graph=further))
    return [next(found) if x.requires_grad else None for x in own]


def _thirds(streams: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
    """Projections, scales of queries and scales of keys."""
    n = len(streams) // 3
    return streams[:n], streams[n : 2 * n], streams[2 * n :]


class _Stream(ctypes.Structure):
    """As in the C++."""

    _fields_ = (
        ("length", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("qkv", "q_scale", "k_scale", "out")),
        ("dout", ctypes.c_void_p),
        ("dout_step", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("dqkv", "dq_scale", "dk_scale")),
    )


class _Problem(ctypes.Structure):
    """As in the C++."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "threads", "streams")),
        *((name, ctypes.c_void_p) for name in ("stream", "cosine", "sine", "present")),
    )


def _forward(
    qkv: list[Tensor], q_scales: list[Tensor], k_scales: list[Tensor],
    cos: Tensor, sin: Tensor, mask: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    outs = _outputs(qkv, q_scales, k_scales, cos, sin, mask)
    _run(False, cos, sin, mask, qkv=qkv, q_scale=q_scales, k_scale=k_scales, out=outs)
    return outs


def _outputs(
    qkv: list[Tensor], q_scales: list[Tensor], k_scales: list[Tensor],
    cos: Tensor, sin: Tensor, mask: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    return [x.new_empty(*x.shape[:2], x.shape[2] // 3) for x in qkv]


def _backward(
    gradients: list[Tensor], qkv: list[Tensor], q_scales: list[Tensor], k_scales: list[Tensor],
    cos: Tensor, sin: Tensor, mask: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    outs = _outputs(qkv, q_scales, k_scales, cos, sin, mask)
    if any(
        g.shape != out.shape or g.dtype != out.dtype or g.device != out.device
        for g, out in zip(gradients, outs, strict=True)
    ):
        raise ValueError("the gradients are not those of the attention's outputs")
    found = _gradients(gradients, qkv, q_scales, k_scales, cos, sin, mask)
    dqkv, dq_scale, dk_scale = _thirds(found)
    _run(
        True, cos, sin, mask, qkv=qkv, q_scale=q_scales, k_scale=k_scales, dout=gradients,
        dqkv=dqkv, dq_scale=dq_scale, dk_scale=dk_scale,
    )  # fmt: skip
    return found


def _gradients(
    gradients: list[Tensor], qkv: list[Tensor], q_scales: list[Tensor], k_scales: list[Tensor],
    cos: Tensor, sin: Tensor, mask: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    return [x.new_empty(x.shape) for x in (*qkv, *q_scales, *k_scales)]


def _run(
    back: bool, cos: Tensor, sin: Tensor, mask: Tensor | None, **parts: Sequence[Tensor]
) -> None:
    """Runs the C++ on what the streams consist of, a part of each under its name."""
    if not _fit(parts["qkv"], parts["q_scale"], parts["k_scale"], cos, sin, mask):
        raise ValueError("projections, scales, table and mask are not those of one attention")
    # The C++ wants tensors without gaps; copies live as long as these names.
    cos, sin = cos.contiguous(), sin.contiguous()
    mask = None if mask is None else mask.contiguous()
    douts = [_evenly_spaced(x) for x in parts.pop("dout", ())]
    whole = {name: [x.contiguous() for x in part] for name, part in parts.items()}
    qkv, size = whole["qkv"], len(whole["q_scale"][0])
    streams = (_Stream * len(qkv))()
    for i, stream in enumerate(streams):
        stream.length = qkv[i].shape[1]
        for name, part in whole.items():
            assert hasattr(stream, name), name
            setattr(stream, name, part[i].data_ptr())
        if back:
            dout, stream.dout_step = douts[i]
            stream.dout = dout.data_ptr()
    problem = _Problem(
        len(qkv[0]), qkv[0].shape[2] // (3 * size), torch.get_num_threads(), len(qkv),
        ctypes.addressof(streams), cos.data_ptr(), sin.data_ptr(),
        None if mask is None else mask.data_ptr(),
    )  # fmt: skip
    library = _library(size)
    if isinstance(library, str):  # `serves` would have said so
        raise RuntimeError(f"heads of {size} numbers: {library}")
    library.attention(ctypes.byref(problem), ctypes.c_int32(back))


def _evenly_spaced(x: Tensor) -> tuple[Tensor, int]:
    """x (b, l, d) with the distance from each token to the next; a copy where they differ.

    What comes back from a layer that has more inputs than the attention is cut, not copied.
    """
    b, length, d = x.shape
    step = x.stride(1) if length > 1 else x.stride(0)
    if x.stride(2) == 1 and (b == 1 or x.stride(0) == length * step):
        return x, step
    return x.reshape(b * length, d).contiguous(), d


def _product_flops(qkv: Sequence[Tensor]) -> int:
    """Operations of queries times keys, or of weights times values."""
    b, _, width = qkv[0].shape
    return 2 * b * sum(x.shape[1] for x in qkv) ** 2 * (width // 3)


_GIVEN = "Tensor[] qkv, Tensor[] q_scales, Tensor[] k_scales, Tensor cos, Tensor sin, Tensor? mask"
define(
    f"attention({_GIVEN}) -> Tensor[]",
    _forward,
    _outputs,
    lambda qkv, *_: 2 * _product_flops(qkv),
)
define(
    f"attention_backward(Tensor[] gradients, {_GIVEN}) -> Tensor[]",
    _backward,
    _gradients,
    lambda gradients, qkv, *_: 4 * _product_flops(qkv),  # what it computes again is not counted
)
