"""Attention of several streams' tokens to each other, as torch's own operations.

Sources: normalised queries and keys, Dehghani et al. 2023, "ViT-22B", sec. 2; joint attention of
streams with weights of their own (MMDiT), Esser et al. 2024, sec. 4 and fig. 2b.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxsmith.model.rope import RotaryTable, rotate

# Up to so many tokens two products and a softmax beat the fused attention of CPUs, whose tiles are
# made for hundreds.
SHORT = 48


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """x / rms(x) * scale over the last axis (Zhang & Sennrich 2019, eq. 4), in float32."""
    return F.rms_norm(x.float(), scale.shape, scale.float(), eps=1e-6).to(x.dtype)


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(b, l, 3*h*k) -> three times (b, h, l, k)."""
    b, length, width = qkv.shape
    q, k, v = qkv.view(b, length, 3, num_heads, width // (3 * num_heads)).permute(2, 0, 3, 1, 4)
    return q, k, v


def attention(q: Tensor, k: Tensor, v: Tensor, pe: RotaryTable, mask: Tensor | None) -> Tensor:
    """Attention with rotated queries and keys, (b, h, l, k) each -> (b, l, h*k).

    `mask` (b, l) is true where a key may be attended to.
    """
    q, k = rotate(q, pe), rotate(k, pe)
    if mask is None and q.device.type == "cpu" and q.shape[2] <= SHORT:
        logits = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
        x = logits.softmax(dim=-1) @ v
    else:
        keys = None if mask is None else mask[:, None, None, :]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
    return x.transpose(1, 2).flatten(2)


def attention_of_projections(
    qkv: Sequence[Tensor],
    q_scales: Sequence[Tensor],
    k_scales: Sequence[Tensor],
    pe: RotaryTable,
    mask: Tensor | None,
) -> tuple[Tensor, ...]:
    """Attention of all streams' tokens to all: (b, l_i, h*k) each.

    A stream brings its projections (b, l_i, 3*h*k) and the scales (k,) to which its queries and
    keys are normalised. Tables and mask are those of the streams one after another.
    """
    parts = []
    for x, q_scale, k_scale in zip(qkv, q_scales, k_scales, strict=True):
        q, k, v = split_heads(x, x.shape[-1] // (3 * len(q_scale)))
        parts.append((rms_norm(q, q_scale), rms_norm(k, k_scale), v))
    return attention(*joined(parts), pe, mask).split([x.shape[1] for x in qkv], dim=1)


def joined(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of several streams as those of one."""
    if len(parts) == 1:
        return parts[0]
    q, k, v = (torch.cat(one, dim=2) for one in zip(*parts, strict=True))
    return q, k, v
