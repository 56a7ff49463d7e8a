"""Flux, the rectified-flow transformer of FLUX.1, at any size.

Parameter names and shapes are those of Black Forest Labs' released weights.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fluxsmith.model.blocks import (
    DoubleStreamBlock,
    LastLayer,
    MLPEmbedder,
    SingleStreamBlock,
    initialise,
    timestep_embedding,
)
from fluxsmith.model.rope import RotaryCache

TIMESTEP_WIDTH = 256  # of the sinusoidal embedding, as in every released FLUX.1


@dataclass(frozen=True)
class FluxParams:
    """The sizes of a Flux, under BFL's names. A ValueError names sizes that don't fit together."""

    in_channels: int  # features of an image token: channels x patch x patch
    vec_in_dim: int  # width of the pooled text vector
    context_in_dim: int  # width of a text token
    hidden_size: int
    mlp_ratio: float
    num_heads: int
    depth: int  # dual-stream blocks
    depth_single_blocks: int
    axes_dim: tuple[int, ...]  # share of a head that each position axis rotates
    theta: float
    qkv_bias: bool
    guidance_embed: bool
    out_channels: int | None = None  # None: as in_channels

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes_dim", tuple(self.axes_dim))  # lists come from YAML
        widths = ("in_channels", "vec_in_dim", "context_in_dim", "hidden_size", "num_heads")
        for name in (*widths, "depth", "depth_single_blocks"):
            value, least = getattr(self, name), 1 if name in widths else 0
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}"
            )
        head = self.hidden_size // self.num_heads
        if sum(self.axes_dim) != head:
            raise ValueError(
                f"axes_dim {list(self.axes_dim)} sums to {sum(self.axes_dim)}; it must sum to the "
                f"head size, hidden_size / num_heads = {head}"
            )
        if len(self.axes_dim) != 3 or any(width < 2 or width % 2 for width in self.axes_dim):
            raise ValueError(
                f"axes_dim {list(self.axes_dim)} must be three positive even numbers, for index, "
                f"row and column: channels turn in pairs"
            )


_FLUX1 = FluxParams(
    in_channels=64,
    vec_in_dim=768,
    context_in_dim=4096,
    hidden_size=3072,
    mlp_ratio=4.0,
    num_heads=24,
    depth=19,
    depth_single_blocks=38,
    axes_dim=(16, 56, 56),
    theta=10_000,
    qkv_bias=True,
    guidance_embed=False,
)

PRESETS = {
    "flux1-schnell": _FLUX1,
    "flux1-dev": replace(_FLUX1, guidance_embed=True),
    "lesson": replace(
        _FLUX1,
        context_in_dim=768,
        hidden_size=384,
        num_heads=6,
        depth=6,
        depth_single_blocks=12,
        axes_dim=(16, 24, 24),
    ),
}


class Flux(nn.Module):
    """Predicts the velocity of image tokens from noisy image tokens, text and time."""

    def __init__(self, params: FluxParams) -> None:
        super().__init__()
        self.params = params
        hidden = params.hidden_size
        self.img_in = nn.Linear(params.in_channels, hidden)
        self.time_in = MLPEmbedder(TIMESTEP_WIDTH, hidden)
        self.vector_in = MLPEmbedder(params.vec_in_dim, hidden)
        self.guidance_in = MLPEmbedder(TIMESTEP_WIDTH, hidden) if params.guidance_embed else None
        self.txt_in = nn.Linear(params.context_in_dim, hidden)
        self.double_blocks = nn.ModuleList(
            DoubleStreamBlock(hidden, params.num_heads, params.mlp_ratio, params.qkv_bias)
            for _ in range(params.depth)
        )
        self.single_blocks = nn.ModuleList(
            SingleStreamBlock(hidden, params.num_heads, params.mlp_ratio)
            for _ in range(params.depth_single_blocks)
        )
        self.final_layer = LastLayer(hidden, params.out_channels or params.in_channels)
        self.rotary = RotaryCache(params.axes_dim, params.theta)
        initialise(self)

    @property
    def blocks(self) -> list[nn.Module]:
        """All of them, in order."""
        return [*self.double_blocks, *self.single_blocks]

    def forward(
        self,
        img: Tensor,
        img_ids: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        timesteps: Tensor,
        y: Tensor,
        guidance: Tensor | None = None,
        txt_mask: Tensor | None = None,
    ) -> Tensor:
        """The velocity of each image token, (b, l_img, out_channels).

        Args:
            img: (b, l_img, in_channels) noisy image tokens.
            img_ids: (l_img, 3) or (b, l_img, 3) positions (index, row, column).
            txt: (b, l_txt, context_in_dim) text tokens.
            txt_ids: (l_txt, 3) or (b, l_txt, 3), zeros in FLUX.1.
            timesteps: (b,) in [0, 1], 1 is noise.
            y: (b, vec_in_dim) pooled text vector.
            guidance: (b,) guidance scales; needed exactly when params.guidance_embed is set.
            txt_mask: (b, l_txt) bool, false for text tokens that must have no influence.
        """
        if (guidance is not None) != (self.guidance_in is not None):
            wants = "needs" if self.guidance_in is not None else "does not take"
            raise ValueError(f"this network {wants} a guidance scale (guidance_embed)")
        dtype = self.img_in.weight.dtype
        vec = self.time_in(timestep_embedding(timesteps.to(dtype), TIMESTEP_WIDTH).to(dtype))
        if self.guidance_in is not None and guidance is not None:
            scale = timestep_embedding(guidance.to(dtype), TIMESTEP_WIDTH)
            vec = vec + self.guidance_in(scale.to(dtype))
        vec = vec + self.vector_in(y.to(dtype))  # (b, d)

        img = self.img_in(img.to(dtype))
        txt = self.txt_in(txt.to(dtype))
        pe = self.rotary(txt_ids, img_ids)
        mask = None
        if txt_mask is not None:
            everywhere = txt_mask.new_ones(img.shape[:2])
            mask = torch.cat((txt_mask, everywhere), dim=1)  # (b, l)

        for block in self.double_blocks:
            img, txt = block(img, txt, vec, pe, mask)
        x = torch.cat((txt, img), dim=1)
        for block in self.single_blocks:
            x = block(x, vec, pe, mask)
        return self.final_layer(x[:, txt.shape[1] :], vec)
