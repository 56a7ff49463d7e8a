"""The joint attention of Flux: every token attends to all tokens of all streams.

Sources: normalised queries and keys, Dehghani et al. 2023, "ViT-22B", sec. 2; joint attention of
streams with weights of their own (MMDiT), Esser et al. 2024, sec. 4 and fig. 2b.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxsmith.model.rope import RotaryTable, rotate

# Queries and keys (b, h, l, k) -> the same, normalised.
Norm = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """x / rms(x) * scale over the last axis (Zhang & Sennrich 2019, eq. 4), in float32."""
    return F.rms_norm(x.float(), scale.shape, scale.float(), eps=1e-6).to(x.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned scale."""

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

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(q), self.key_norm(k)


def joint_attention(
    streams: Sequence[tuple[Tensor, Norm]], num_heads: int, pe: RotaryTable, mask: Tensor | None
) -> tuple[Tensor, ...]:
    """Softmax attention over the tokens of all streams, one stream after another.

    A stream is its projections qkv (b, l_i, 3*h*k) and the norm of its queries and keys. `pe` is
    the rotary table of all l tokens; `mask` (b, l) is true where a key may be attended to. Returns
    each stream's share of the output, (b, l_i, h*k).

    torch's fused attention has no second derivatives: a gradient penalty needs
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` around the forward pass.
    """
    parts = []
    for qkv, norm in streams:
        q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)  # (b, h, l_i, k)
        parts.append((*norm(q, k), v))
    q, k, v = (torch.cat(one, dim=2) for one in zip(*parts, strict=True))  # (b, h, l, k)
    keys = None if mask is None else mask[:, None, None, :]  # (b, 1, 1, l)
    x = F.scaled_dot_product_attention(rotate(q, pe), rotate(k, pe), v, attn_mask=keys)
    x = x.transpose(1, 2).flatten(2)  # (b, l, h*k)
    return x.split([qkv.shape[1] for qkv, _ in streams], dim=1)
