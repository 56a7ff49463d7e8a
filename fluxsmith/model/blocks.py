"""The parts of Flux, with the parameter names of Black Forest Labs' released weights.

Sources: adaLN-zero, Peebles & Xie 2023, "DiT", sec. 3.2; dual-stream (MMDiT) blocks, Esser et al.
2024, sec. 4 and fig. 2b; parallel attention and MLP, Dehghani et al. 2023, "ViT-22B", sec. 2.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxsmith.model.attention import QKNorm, joint_attention
from fluxsmith.model.rope import RotaryTable


def timestep_embedding(t: Tensor, width: int, max_period: float = 10_000) -> Tensor:
    """cos and sin of 1000 t at width/2 frequencies (Vaswani et al. 2017, sec. 3.5): (b, width).

    `t` (b,) in [0, 1]. 1000 t is rounded to t's dtype, as in FLUX.1's reference and in diffusers:
    a guidance scale of 3.5 in bfloat16 counts as 3.504. The rest is float32, as is the result.
    """
    half = width // 2
    frequency = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    )
    angle = (1000.0 * t).float()[:, None] * frequency  # (b, width/2)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class MLPEmbedder(nn.Module):
    """Two linear layers around SiLU: a vector's way into the modulation."""

    def __init__(self, in_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, hidden_dim)
        self.out_layer = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class SelfAttention(nn.Module):
    """The layers of one stream's attention; attention itself is joint, in the block."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.norm = QKNorm(dim // num_heads)
        self.proj = nn.Linear(dim, dim)


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
        self.lin = nn.Linear(dim, 3 * self.halves * dim)

    def forward(self, vec: Tensor) -> list[Modulated]:
        parts = self.lin(F.silu(vec))[:, None, :].chunk(3 * self.halves, dim=-1)
        return [Modulated(*parts[3 * i : 3 * i + 3]) for i in range(self.halves)]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """A layer norm without parameters of its own, then scale and shift: (b, l, d)."""
    x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return torch.addcmul(shift, x, 1 + scale)


def mlp(hidden: int, inner: int) -> nn.Sequential:
    """The two-layer perceptron of a stream, with the tanh form of GELU."""
    return nn.Sequential(
        nn.Linear(hidden, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, hidden)
    )


class DoubleStreamBlock(nn.Module):
    """Text and image with weights of their own, meeting in one joint attention (MMDiT)."""

    attention = staticmethod(joint_attention)

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, qkv_bias: bool) -> None:
        super().__init__()
        inner = int(hidden_size * mlp_ratio)
        self.img_mod = Modulation(hidden_size, double=True)
        self.img_attn = SelfAttention(hidden_size, num_heads, qkv_bias)
        self.img_mlp = mlp(hidden_size, inner)
        self.txt_mod = Modulation(hidden_size, double=True)
        self.txt_attn = SelfAttention(hidden_size, num_heads, qkv_bias)
        self.txt_mlp = mlp(hidden_size, inner)

    def forward(
        self, img: Tensor, txt: Tensor, vec: Tensor, pe: RotaryTable, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        img_mod1, img_mod2 = self.img_mod(vec)
        txt_mod1, txt_mod2 = self.txt_mod(vec)

        img_qkv = self.img_attn.qkv(modulate(img, img_mod1.shift, img_mod1.scale))
        txt_qkv = self.txt_attn.qkv(modulate(txt, txt_mod1.shift, txt_mod1.scale))
        streams = ((txt_qkv, self.txt_attn.norm), (img_qkv, self.img_attn.norm))  # text first
        txt_out, img_out = self.attention(streams, self.img_attn.num_heads, pe, mask)

        img = img + img_mod1.gate * self.img_attn.proj(img_out)
        img = img + img_mod2.gate * self.img_mlp(modulate(img, img_mod2.shift, img_mod2.scale))
        txt = txt + txt_mod1.gate * self.txt_attn.proj(txt_out)
        txt = txt + txt_mod2.gate * self.txt_mlp(modulate(txt, txt_mod2.shift, txt_mod2.scale))
        return img, txt


class SingleStreamBlock(nn.Module):
    """One stream over text and image together; attention and MLP side by side, in two products."""

    attention = staticmethod(joint_attention)

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.inner = int(hidden_size * mlp_ratio)
        self.linear1 = nn.Linear(hidden_size, 3 * hidden_size + self.inner)  # qkv and MLP in
        self.linear2 = nn.Linear(hidden_size + self.inner, hidden_size)  # attention and MLP out
        self.norm = QKNorm(hidden_size // num_heads)
        self.modulation = Modulation(hidden_size, double=False)

    def forward(self, x: Tensor, vec: Tensor, pe: RotaryTable, mask: Tensor | None) -> Tensor:
        (mod,) = self.modulation(vec)
        x_mod = modulate(x, mod.shift, mod.scale)
        qkv, inner = self.linear1(x_mod).split((3 * self.hidden_size, self.inner), dim=-1)
        (attended,) = self.attention(((qkv, self.norm),), self.num_heads, pe, mask)
        inner = F.gelu(inner, approximate="tanh")
        return x + mod.gate * self.linear2(torch.cat((attended, inner), dim=-1))


class LastLayer(nn.Module):
    """The last modulation and the projection from hidden width to a patch."""

    def __init__(self, hidden_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec)[:, None, :].chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale))


def initialise(network: nn.Module) -> None:
    """The weights that training from scratch starts from: the network predicts exactly 0, and each
    of its blocks is the identity. As DiT (Peebles & Xie 2023, sec. 3.2 "adaLN-Zero" and its
    reference implementation):

    - linear layers: Xavier uniform (Glorot & Bengio 2010, eq. 16), biases 0;
    - the embedders of time, guidance and pooled text: normal, standard deviation 0.02;
    - every modulation and the output layer: 0, so gates are closed and the prediction is 0.

    The scales of the RMS norms stay at the 1 that they were made with.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, MLPEmbedder):
            nn.init.normal_(module.in_layer.weight, std=0.02)
            nn.init.normal_(module.out_layer.weight, std=0.02)
        elif isinstance(module, Modulation | LastLayer):
            for weight in module.parameters():
                nn.init.zeros_(weight)
