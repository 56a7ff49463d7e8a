"""The streams of tokens that meet in Flux's joint attention."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fluxsmith.model import fused_attention as fused
from fluxsmith.model.attention import attention, joined, rms_norm, split_heads
from fluxsmith.model.rope import RotaryTable


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis (Zhang & Sennrich 2019, eq. 4), in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale)


class QKNorm(nn.Module):
    """RMS-normalised queries and keys, which keeps attention logits from growing."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(dim)
        self.key_norm = RMSNorm(dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(q).to(v.dtype), self.key_norm(k).to(v.dtype)


class Stream(NamedTuple):
    """Tokens that meet others in an attention."""

    qkv: Tensor  # (b, l, 3*h*k)
    norm: QKNorm


def joint_attention(
    streams: Sequence[Stream], num_heads: int, pe: RotaryTable, mask: Tensor | None
) -> tuple[Tensor, ...]:
    """Every token attends to those of all streams, one after another: (b, l_i, h*k) each.

    `pe` is the table of all l tokens, `mask` (b, l) is true where a key may be attended to.
    """
    if all(map(_as_written, streams)):
        qkv = [stream.qkv for stream in streams]
        q_scales = [stream.norm.query_norm.scale for stream in streams]
        k_scales = [stream.norm.key_norm.scale for stream in streams]
        if fused.serves(qkv, q_scales, k_scales, num_heads, pe, mask):
            return fused.attention(qkv, q_scales, k_scales, pe, mask)
    parts = []
    for stream in streams:
        q, k, v = split_heads(stream.qkv, num_heads)
        parts.append((*stream.norm(q, k, v), v))
    lengths = [stream.qkv.shape[1] for stream in streams]
    return attention(*joined(parts), pe, mask).split(lengths, dim=1)


def _as_written(stream: Stream) -> bool:
    """Whether nobody has put something else in the place of its norms, or hooked into them."""
    norm = stream.norm
    if type(norm) is not QKNorm or _has_any_global_hook():
        return False
    parts = (norm.query_norm, norm.key_norm)
    return all(type(part) is RMSNorm for part in parts) and not any(
        one._forward_hooks or one._forward_pre_hooks or one._backward_hooks
        or one._backward_pre_hooks or "forward" in vars(one)
        for one in (norm, *parts)
    )  # fmt: skip
