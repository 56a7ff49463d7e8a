"""The parts of Flux, with the parameter names of Black Forest Labs' released weights.

Sources: adaLN-zero, Peebles & Xie 2023, "DiT", sec. 3.2; dual-stream (MMDiT) blocks, Esser et al.
2024, sec. 4 and fig. 2b; parallel attention and MLP, Dehghani et al. 2023, "ViT-22B", sec. 2.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxsmith.model.linear import Linear
from fluxsmith.model.rope import RotaryTable
from fluxsmith.model.streams import QKNorm, Stream, joint_attention


def timestep_embedding(t: Tensor, width: int, max_period: float = 10_000) -> Tensor:
    """cos and sin of 1000 t at width/2 frequencies (Vaswani et al. 2017, sec. 3.5): (b, width).

    `t` (b,) in [0, 1]; computed and returned in float32.
    """
    half = width // 2
    frequency = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    )
    angle = 1000.0 * t.float()[:, None] * frequency  # (b, width/2)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class MLPEmbedder(nn.Module):
    """Two linear layers around SiLU: a vector's way into the modulation."""

    def __init__(self, in_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.in_layer = Linear(in_dim, hidden_dim)
        self.out_layer = Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class SelfAttention(nn.Module):
    """The projections of one stream; attention itself is joint, in the block."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.norm = QKNorm(dim // num_heads)
        self.proj = Linear(dim, dim)

    def stream(self, x: Tensor) -> Stream:
        """What x (b, l, d) brings to the attention."""
        return Stream(self.qkv(x), self.norm)


class Modulated(NamedTuple):
    """What adaLN gives one half of a block: (b, 1, d) each."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class Modulation(nn.Module):
    """adaLN-zero: shift, scale and gate of each half of a block from the vector `vec`."""

    def __init__(self, dim: int, double: bool) -> None:
        super().__init__()
        self.halves = 2 if double else 1
        self.lin = Linear(dim, 3 * self.halves * dim)

    def forward(self, vec: Tensor) -> list[Modulated]:
        parts = self.lin(F.silu(vec))[:, None, :].chunk(3 * self.halves, dim=-1)
        return [Modulated(*parts[3 * i : 3 * i + 3]) for i in range(self.halves)]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """A layer norm without parameters of its own, then scale and shift: (b, l, d)."""
    x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return torch.addcmul(shift, x, 1 + scale)


class MLP(nn.Sequential):
    """The two-layer perceptron of a stream, with the tanh form of GELU; its layers are 0 and 2."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__(Linear(hidden, inner), nn.Identity(), Linear(inner, hidden))

    def forward(self, x: Tensor) -> Tensor:
        into, _, out = self
        y: Tensor = out(into(x, gelu=True))
        return y


class DoubleStreamBlock(nn.Module):
    """Text and image with weights of their own, meeting in one joint attention (MMDiT)."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, qkv_bias: bool) -> None:
        super().__init__()
        inner = int(hidden_size * mlp_ratio)
        self.img_mod = Modulation(hidden_size, double=True)
        self.img_attn = SelfAttention(hidden_size, num_heads, qkv_bias)
        self.img_mlp = MLP(hidden_size, inner)
        self.txt_mod = Modulation(hidden_size, double=True)
        self.txt_attn = SelfAttention(hidden_size, num_heads, qkv_bias)
        self.txt_mlp = MLP(hidden_size, inner)

    def forward(
        self, img: Tensor, txt: Tensor, vec: Tensor, pe: RotaryTable, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        img_mod1, img_mod2 = self.img_mod(vec)
        txt_mod1, txt_mod2 = self.txt_mod(vec)

        image = self.img_attn.stream(modulate(img, img_mod1.shift, img_mod1.scale))
        text = self.txt_attn.stream(modulate(txt, txt_mod1.shift, txt_mod1.scale))
        heads = self.img_attn.num_heads
        txt_out, img_out = joint_attention((text, image), heads, pe, mask)  # text first

        img = img + img_mod1.gate * self.img_attn.proj(img_out)
        img = img + img_mod2.gate * self.img_mlp(modulate(img, img_mod2.shift, img_mod2.scale))
        txt = txt + txt_mod1.gate * self.txt_attn.proj(txt_out)
        txt = txt + txt_mod2.gate * self.txt_mlp(modulate(txt, txt_mod2.shift, txt_mod2.scale))
        return img, txt


class SingleStreamBlock(nn.Module):
    """One stream over text and image together; attention and MLP side by side, in two products."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.inner = int(hidden_size * mlp_ratio)
        self.linear1 = Linear(hidden_size, 3 * hidden_size + self.inner)  # qkv and MLP in
        self.linear2 = Linear(hidden_size + self.inner, hidden_size)  # attention and MLP out
        self.norm = QKNorm(hidden_size // num_heads)
        self.modulation = Modulation(hidden_size, double=False)

    def forward(self, x: Tensor, vec: Tensor, pe: RotaryTable, mask: Tensor | None) -> Tensor:
        (mod,) = self.modulation(vec)
        x_mod = modulate(x, mod.shift, mod.scale)
        qkv, inner = self.linear1(x_mod, sizes=(3 * self.hidden_size, self.inner), gelu=True)
        (attended,) = joint_attention((Stream(qkv, self.norm),), self.num_heads, pe, mask)
        return x + mod.gate * self.linear2(attended, inner)


class LastLayer(nn.Module):
    """The last modulation and the projection from hidden width to a patch."""

    def __init__(self, hidden_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear = Linear(hidden_size, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(hidden_size, 2 * hidden_size))

    @property
    def modulation(self) -> nn.Linear:
        linear = self.adaLN_modulation[1]
        assert isinstance(linear, nn.Linear)
        return linear

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec)[:, None, :].chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale))
