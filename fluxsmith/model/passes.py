"""What goes over the numbers before and after a linear layer's products, in one pass of C++ each.

torch takes a pass for GELU's gradient, one for the bias's sums, and for the weights' gradient one
that transposes or a product that is slower without. Compiled blocks have what torch compiles.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fluxsmith import native

SOURCE = Path(__file__).with_suffix(".cpp")
WIDTH = 16  # numbers that are taken at a time


class _Piece(ctypes.Structure):
    """As in the C++."""

    _fields_ = (
        ("columns", ctypes.c_int64),
        ("gradient", ctypes.c_void_p),
        ("step", ctypes.c_int64),
        ("before", ctypes.c_void_p),
        ("through", ctypes.c_void_p),
    )


class _Problem(ctypes.Structure):
    """As in the C++."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "threads", "pieces")),
        *((name, ctypes.c_void_p) for name in ("piece", "transposed", "sums")),
    )


def serve(x: Tensor, sizes: Sequence[int]) -> bool:
    """Whether these passes can be had, for a layer's output in pieces of these widths.

    `x` is what they would be about; a tensor of another class need not have numbers in memory.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, nn.Parameter)
        and not any(size % WIDTH for size in sizes)
        and isinstance(library(), ctypes.CDLL)
    )


def library() -> ctypes.CDLL | str:
    """The compiled C++, or why there is none."""
    return native.library(SOURCE)


def gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU of x, contiguous float32 on the CPU."""
    y = torch.empty_like(x)
    _library().forward(
        *(ctypes.c_void_p(t.data_ptr()) for t in (x, y)),
        *(ctypes.c_int64(n) for n in (x.numel(), torch.get_num_threads())),
    )
    return y


def backward(
    gradients: Sequence[Tensor], before: Tensor | None, transpose: bool
) -> tuple[tuple[Tensor, ...], Tensor | None, Tensor]:
    """What a layer's products want of its output's gradients, pieces of (r, n_i).

    `before` (..., n_last) is what GELU was applied to in the last piece. Returns the gradients
    through GELU, (r, n_i); where asked for their transpose, (sum of n_i, r); their sums over rows.
    """
    # The C++ wants rows without gaps inside them; copies live as long as this name.
    given = [g if g.stride(1) == 1 else g.contiguous() for g in gradients]
    height, width = len(given[0]), sum(g.shape[1] for g in given)
    pieces = (_Piece * len(given))(*(_Piece(g.shape[1], g.data_ptr(), g.stride(0)) for g in given))
    through = list(given)
    if before is not None:
        before = before.contiguous()
        through[-1] = before.new_empty(height, before.shape[-1])
        pieces[-1].before, pieces[-1].through = before.data_ptr(), through[-1].data_ptr()
    transposed = given[0].new_empty(width, height) if transpose else None
    sums = given[0].new_empty(width)
    problem = _Problem(
        height, torch.get_num_threads(), len(given), ctypes.addressof(pieces),
        None if transposed is None else transposed.data_ptr(), sums.data_ptr(),
    )  # fmt: skip
    _library().backward(ctypes.byref(problem))
    return tuple(g.contiguous() for g in through), transposed, sums


def _library() -> ctypes.CDLL:
    found = library()
    if isinstance(found, str):  # `serve` would have said so
        raise RuntimeError(found)
    return found
