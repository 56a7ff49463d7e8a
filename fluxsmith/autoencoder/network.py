"""FLUX.1's convolutional autoencoder, with the parameter names of the released ae.safetensors.

The architecture is that of latent diffusion's KL autoencoder (Rombach et al. 2022, sec. 3.1 and
appendix E), without the 1x1 convolutions around the latent. Whatever only runs its parts one after
the other is a Sequential, whose parts have BFL's names.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32  # of every group norm


@dataclass(frozen=True)
class AutoencoderParams:
    """The sizes of an autoencoder, under BFL's names; the defaults are FLUX.1's."""

    in_channels: int = 3  # of an image
    ch: int = 128  # width of the first level
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)  # width of each level, in multiples of ch
    num_res_blocks: int = 2  # a level of the encoder; the decoder has one more
    z_channels: int = 16  # of a latent

    @property
    def factor(self) -> int:
        """Pixels a side that make one latent; each level but the last halves the picture."""
        return 2 ** (len(self.ch_mult) - 1)


class AutoencoderNetwork(nn.Module):
    """Images (b, c, H, W) to the moments of their latents, and latents to images."""

    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__()
        self.params = params
        self.encoder = encoder(params)
        self.decoder = decoder(params)


def encoder(params: AutoencoderParams) -> nn.Sequential:
    """(b, c, H, W) -> (b, 2z, H/f, W/f): mean and log variance of each latent channel."""
    widths = [params.ch * m for m in params.ch_mult]
    inputs, last = [params.ch, *widths], len(widths) - 1
    levels = (
        level(inputs[i], width, params.num_res_blocks, "downsample" if i < last else None)
        for i, width in enumerate(widths)
    )
    return sequential(
        conv_in=conv3(params.in_channels, params.ch),
        down=nn.Sequential(*levels),
        mid=middle(widths[-1]),
        norm_out=group_norm(widths[-1]),
        activation=nn.SiLU(),
        conv_out=conv3(widths[-1], 2 * params.z_channels),
    )


def decoder(params: AutoencoderParams) -> nn.Sequential:
    """(b, z, h, w) -> (b, c, f h, f w). Level i works at the resolution of the encoder's level i,
    so they run from the last to the first."""
    widths = [params.ch * m for m in params.ch_mult]
    inputs = [*widths[1:], widths[-1]]
    levels = (
        (str(i), level(inputs[i], width, params.num_res_blocks + 1, "upsample" if i else None))
        for i, width in enumerate(widths)
    )
    return sequential(
        conv_in=conv3(params.z_channels, widths[-1]),
        mid=middle(widths[-1]),
        up=sequential(**dict(reversed([*levels]))),
        norm_out=group_norm(widths[0]),
        activation=nn.SiLU(),
        conv_out=conv3(widths[0], params.in_channels),
    )


def level(inputs: int, width: int, blocks: int, resample: str | None) -> nn.Sequential:
    """Residual blocks, then half or twice the resolution."""
    block = (ResidualBlock(width if i else inputs, width) for i in range(blocks))
    parts = {"block": nn.Sequential(*block)}
    if resample == "downsample":  # padded at the right and the bottom only
        conv = nn.Conv2d(width, width, 3, stride=2)
        parts[resample] = sequential(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=conv)
    elif resample == "upsample":  # each pixel four times, and a convolution
        grow = nn.Upsample(scale_factor=2.0, mode="nearest")
        parts[resample] = sequential(grow=grow, conv=conv3(width, width))
    return sequential(**parts)


def middle(width: int) -> nn.Sequential:
    """Attention over the whole picture between two residual blocks, at the lowest resolution."""
    return sequential(
        block_1=ResidualBlock(width, width),
        attn_1=Attention(width),
        block_2=ResidualBlock(width, width),
    )


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = conv3(inputs, width)
        self.norm2 = group_norm(width)
        self.conv2 = conv3(width, width)
        self.nin_shortcut = nn.Conv2d(inputs, width, 1) if inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nn.Module):
    """One head over all positions; 1x1 convolutions as its projections."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (
            layer(normed).flatten(2).transpose(1, 2)[:, None]  # (b, 1, h*w, c)
            for layer in (self.q, self.k, self.v)
        )
        h = F.scaled_dot_product_attention(q, k, v)
        h = h[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])  # (b, c, h, w)
        return x + self.proj_out(h)


def sequential(**parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=1e-6)
