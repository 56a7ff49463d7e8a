"""The one door through which a network gets faster: its blocks compute the same in fewer passes.

`accelerate` gives blocks and layers that our C++ can serve another class, with the same parameters
under the same names; all others stay as they are. What can be known beforehand is decided then:
device, dtype, processor, sizes, hooks, layers that somebody wrapped or replaced. What only a call
can tell, such as a layer that was hooked or wrapped since, is a check, and then the plain forward.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fluxsmith.kernels.cpu import features, fused_attention, gelu_linear, onednn
from fluxsmith.kernels.cpu.operators import called_plainly, is_float32
from fluxsmith.model.attention import Norm, QKNorm, RMSNorm, joint_attention
from fluxsmith.model.blocks import DoubleStreamBlock, SingleStreamBlock, modulate
from fluxsmith.model.rope import RotaryTable


def accelerate(network: nn.Module, kernels: str = "auto") -> None:
    """From now on the network computes by our C++ what it can (`auto`), or plainly (`off`)."""
    for module in network.modules():
        if type(module) in PLAIN:
            module.__class__ = PLAIN[type(module)]
    if kernels == "off" or _has_any_global_hook():
        return
    for module in list(network.modules()):
        for fast in FAST.get(type(module), ()):
            if fast.serves(module):
                module.__class__ = fast
                break


@contextmanager
def accelerated(network: nn.Module, kernels: str = "auto", evaluations: int = 0) -> Iterator[None]:
    """Inside, the network computes by our C++ (`auto`) or plainly (`off`); then as before.

    `evaluations` is how often it will be called with these weights, which must not change inside.
    """
    before = {module: type(module) for module in network.modules()}
    accelerate(network, kernels)
    try:
        with onednn.packing(network, evaluations if kernels == "auto" else 0):
            yield
    finally:
        for module, own in before.items():
            module.__class__ = own


def backend(device: torch.device, kernels: str = "auto") -> str:
    """What computes on this device, as in "oneDNN and C++": a result's last bits depend on it."""
    if device.type != "cpu" or kernels == "off" or isinstance(gelu_linear.library(), str):
        return "torch"
    return f"{onednn.library()} and C++" + " (AVX2)" * (features.vectors() == "avx2")


def why_plain() -> str:
    """Why there is none of our C++, which this processor could run; nothing where there is."""
    found = gelu_linear.library()
    return found if isinstance(found, str) and features.vectors() else ""


class FastLinear(nn.Linear):
    """A layer whose products are oneDNN's, where they are large enough for it."""

    @staticmethod
    def serves(layer: nn.Linear) -> bool:
        return onednn.ONEDNN_IS_QUICKER and _is_linear(layer, [layer.out_features])

    def forward(self, x: Tensor) -> Tensor:
        if not (_usual(x) and _large(x, self)):
            return super().forward(x)
        weights = self.weight, self.bias
        return gelu_linear.gelu_linear(x, *weights, [self.out_features], gelu=False)[0]


class FastMLP(nn.Sequential):
    """Linear, GELU, linear: the first two in one."""

    @staticmethod
    def serves(mlp: nn.Sequential) -> bool:
        return (
            len(mlp) == 3
            and isinstance(mlp[0], nn.Linear)
            and _is_linear(mlp[0], [mlp[0].out_features])
            and type(mlp[1]) is nn.GELU
            and mlp[1].approximate == "tanh"
            and _is_untouched(mlp[1])
        )

    def forward(self, x: Tensor) -> Tensor:
        into, gelu, out = cast(tuple[nn.Linear, nn.GELU, nn.Module], tuple(self))
        if not (_usual(x) and _as_before(into, gelu) and _large(x, into)):
            return super().forward(x)
        (inner,) = gelu_linear.gelu_linear(x, into.weight, into.bias, [into.out_features])
        y: Tensor = out(inner)
        return y


def fast_attention(
    streams: Sequence[tuple[Tensor, Norm]], num_heads: int, pe: RotaryTable, mask: Tensor | None
) -> tuple[Tensor, ...]:
    """`joint_attention`, in one pass where it can be; the norms are QKNorms."""
    qkv, norms = zip(*cast(Sequence[tuple[Tensor, QKNorm]], streams), strict=True)
    if not (_as_before(*norms) and all(_as_before(n.query_norm, n.key_norm) for n in norms)):
        return joint_attention(streams, num_heads, pe, mask)
    q_scales = [norm.query_norm.scale for norm in norms]
    k_scales = [norm.key_norm.scale for norm in norms]
    if called_plainly() and fused_attention.fit(qkv, q_scales, k_scales, pe, mask):
        return fused_attention.attention(qkv, q_scales, k_scales, pe, mask)
    return joint_attention(streams, num_heads, pe, mask)


class FastDoubleStreamBlock(DoubleStreamBlock):
    """A dual-stream block with its attention in one pass."""

    attention = staticmethod(fast_attention)

    @staticmethod
    def serves(block: DoubleStreamBlock) -> bool:
        return _is_norm(block.img_attn.norm) and _is_norm(block.txt_attn.norm)


class FastAttentionBlock(SingleStreamBlock):
    """A single-stream block with its attention in one pass, whose layers may be wrapped."""

    attention = staticmethod(fast_attention)

    @staticmethod
    def serves(block: SingleStreamBlock) -> bool:
        return _is_norm(block.norm)


class FastSingleStreamBlock(FastAttentionBlock):
    """A single-stream block with its attention in one pass, and GELU within its first layer."""

    @staticmethod
    def serves(block: SingleStreamBlock) -> bool:
        return (
            FastAttentionBlock.serves(block)
            and _is_linear(block.linear1, [3 * block.hidden_size, block.inner])
            and _is_linear(block.linear2, [block.hidden_size])
        )

    def forward(self, x: Tensor, vec: Tensor, pe: RotaryTable, mask: Tensor | None) -> Tensor:
        if not (_usual(x) and _as_before(self.linear1, self.linear2)):
            return super().forward(x, vec, pe, mask)
        (mod,) = self.modulation(vec)
        x_mod = modulate(x, mod.shift, mod.scale)
        sizes = [3 * self.hidden_size, self.inner]
        if _large(x_mod, self.linear1):
            weights = self.linear1.weight, self.linear1.bias
            qkv, inner = gelu_linear.gelu_linear(x_mod, *weights, sizes)
        else:
            qkv, inner = self.linear1(x_mod).split(sizes, dim=-1)
            inner = F.gelu(inner, approximate="tanh")
        (attended,) = self.attention(((qkv, self.norm),), self.num_heads, pe, mask)
        if torch.is_grad_enabled() or not onednn.ONEDNN_IS_QUICKER or not _large(x, self.linear2):
            return x + mod.gate * self.linear2(torch.cat((attended, inner), dim=-1))
        out = self.linear2
        return x + mod.gate * onednn.joined_linear((attended, inner), out.weight, out.bias)


FAST: dict[type[nn.Module], tuple[Any, ...]] = {  # the first that serves
    nn.Linear: (FastLinear,),
    nn.Sequential: (FastMLP,),
    DoubleStreamBlock: (FastDoubleStreamBlock,),
    SingleStreamBlock: (FastSingleStreamBlock, FastAttentionBlock),
}
SERVED = nn.Linear, FastLinear, nn.GELU, QKNorm, RMSNorm  # what blocks compute in place of
PLAIN = {fast: plain for plain, own in FAST.items() for fast in own}


def _is_untouched(module: nn.Module) -> bool:
    """Whether nobody hooked into the module, nor gave it a forward of its own."""
    hooks = (
        module._forward_hooks, module._forward_pre_hooks,
        module._backward_hooks, module._backward_pre_hooks,
    )  # fmt: skip
    return not any(hooks) and "forward" not in vars(module)


def _as_before(*modules: nn.Module) -> bool:
    """Whether nobody hooked into these, or put others in their place, since `accelerate`. Compiled
    code is made of what was there when it was compiled."""
    if torch.compiler.is_compiling():
        return True
    return all(type(module) in SERVED and _is_untouched(module) for module in modules)


def _is_linear(layer: nn.Module, sizes: Sequence[int]) -> bool:
    """Whether this is a plain layer, of outputs in pieces of these sizes that our C++ serves. A
    parametrised layer has a class of its own."""
    return (
        isinstance(layer, nn.Linear)
        and type(layer) in (nn.Linear, FastLinear)
        and _is_untouched(layer)
        and _may_be_float32(layer.weight)
        and gelu_linear.serves(sizes)
    )


def _is_norm(norm: nn.Module) -> bool:
    """Whether queries and keys are normalised as the network was written, and our C++ can."""
    if type(norm) is not QKNorm or not _is_untouched(norm):
        return False
    return all(
        type(part) is RMSNorm
        and _is_untouched(part)
        and _may_be_float32(part.scale)
        and fused_attention.serves(len(part.scale))
        for part in (norm.query_norm, norm.key_norm)
    )


def _may_be_float32(weight: Tensor) -> bool:
    """Whether these are, or once they have a place may be, what our operators compute with."""
    return is_float32(weight) or (weight.dtype == torch.float32 and weight.is_meta)


def _usual(x: Tensor) -> bool:
    """Whether our operators can take this call's tensors."""
    return is_float32(x) and called_plainly()


def _large(x: Tensor, layer: nn.Linear) -> bool:
    """Whether a layer's product is large enough for what an operator of our own costs to call."""
    return x.numel() * layer.out_features >= onednn.WORTH
