"""Matrix products by oneDNN, where it is quicker than what torch takes by itself.

torch multiplies float32 matrices on x86 by Intel's MKL, which leaves a part of AMD's processors
with AVX-512 unused; oneDNN, which torch has inside it as well, does not. Which of the two is taken
follows from the processor and the sizes alone, so that a resumed run computes as the run did.
`torch.backends.mkldnn.flags(enabled=False)` keeps to MKL.

oneDNN copies a weight into blocks in every product. A network that draws uses the same weights
dozens of times, so they are packed once; training, which changes them in every step, does without.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor, nn

from fluxsmith.kernels.cpu.features import CPU_INFO, described, vectors
from fluxsmith.kernels.cpu.operators import define, shapes_alone

# oneDNN pays for products of at least so many multiplications: calling it costs 0.2 ms.
WORTH = 1 << 24

# Bytes up to which weights are packed: packed weights are a second copy of them.
ROOM = 1 << 30

# Packing weights pays for at least so many evaluations of a network.
OFTEN = 8

# By weight, dimension and sizes: the weight, so that no other can come to have its id, and its
# packed pieces.
_Packed = dict[tuple[object, ...], tuple[Tensor, list[Tensor]]]
_PACKED: ContextVar[_Packed | None] = ContextVar("packed", default=None)


def onednn_is_quicker(info: Path = CPU_INFO) -> bool:
    """Whether oneDNN beats MKL here: on AMD's processors with AVX-512, where that was measured."""
    by_amd = described("vendor_id", info) == "AuthenticAMD"
    return torch.backends.mkldnn.is_available() and by_amd and vectors(info) == "avx512"


def library() -> str:
    """Which library multiplies large float32 matrices on this machine's CPU."""
    return "oneDNN" if is_quicker() else "torch"


def is_quicker() -> bool:
    """Whether large products are for oneDNN here, and it is not switched off."""
    return ONEDNN_IS_QUICKER and torch._C._get_mkldnn_enabled()


def worth_it(x: Tensor, weight: Tensor) -> bool:
    """Whether x (..., k) times weightᵀ, weight (n, k), is for oneDNN."""
    return is_quicker() and x.numel() * len(weight) >= WORTH


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int], gelu: bool = False
) -> list[Tensor]:
    """x weightᵀ + bias in pieces (..., size_i); `gelu` passes the last through GELU's tanh form."""
    biases = bias.split(list(sizes)) if bias is not None else [None] * len(sizes)
    after = [False] * (len(sizes) - 1) + [gelu]
    parts = zip(pieces_of(weight, sizes, 0, x), biases, after, strict=True)
    return [product(x, w, b, activation) for w, b, activation in parts]


def joined_linear(xs: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """cat(xs) weightᵀ + bias, without gradients: the weight is cut, the inputs are not joined."""
    y: Tensor = torch.ops.fluxsmith.joined_linear.default(xs, weight, bias)
    return y


def _joined_linear(xs: list[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    widths = [x.shape[-1] for x in xs]
    return sum_of_products(xs, pieces_of(weight, widths, 1, xs[0]), bias)


def sum_of_products(
    xs: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None = None
) -> Tensor:
    """sum_i xs_i weights_iᵀ + bias, the sum taken inside the products."""
    y = product(xs[0], weights[0], bias)
    if shapes_alone(y):
        return y
    for x, weight in zip(xs[1:], weights[1:], strict=True):
        y = torch.ops.mkldnn._linear_pointwise.binary(x, y, weight, None, "add")
    return y


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x weightᵀ + bias. The weight may be packed; oneDNN is slow where its rows have gaps."""
    if shapes_alone(x):
        return x.new_empty(*x.shape[:-1], len(weight))
    name, form = ("gelu", "tanh") if gelu else ("none", "")
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, name, [], form)
    return y


@contextmanager
def packing(network: nn.Module, evaluations: int) -> Iterator[None]:
    """Inside, where the network's weights must not change, products keep them packed; not for fewer
    than OFTEN evaluations, nor for a network of more than ROOM bytes or off the CPU."""
    weights = list(network.parameters())
    small = sum(weight.numel() * 4 for weight in weights) <= ROOM
    # Weights that a hook brings are not there to stay.
    here = all(weight.device.type == "cpu" for weight in weights) and not any(
        module._forward_pre_hooks for module in network.modules()
    )
    token = _PACKED.set({} if evaluations >= OFTEN and small and here else None)
    try:
        yield
    finally:
        _PACKED.reset(token)


def pieces_of(weight: Tensor, sizes: Sequence[int], dim: int, x: Tensor) -> Sequence[Tensor]:
    """The pieces of a weight (n, k), sizes that add up to its size in `dim`, for products with x
    (..., its share of k): packed inside `packing`, and without gaps in any case."""
    packed, key = _PACKED.get(), (id(weight), dim, *sizes)
    if packed is not None and key in packed:
        return packed[key][1]
    pieces = [piece.contiguous() for piece in weight.split(list(sizes), dim)]
    if packed is not None and not shapes_alone(weight):
        rows = x.numel() // x.shape[-1]
        pieces = [torch.ops.mkldnn._reorder_linear_weight(piece, rows) for piece in pieces]
        packed[key] = weight, pieces
    return pieces


ONEDNN_IS_QUICKER = onednn_is_quicker()

define("joined_linear(Tensor[] xs, Tensor w, Tensor? b) -> Tensor", _joined_linear)
