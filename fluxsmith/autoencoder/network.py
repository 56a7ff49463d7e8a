"""FLUX.1's convolutional autoencoder, with the parameter names of the released ae.safetensors.

The architecture is that of latent diffusion's KL autoencoder (Rombach et al. 2022, sec. 3.1 and
appendix E), without the 1x1 convolutions around the latent.
"""

from dataclasses import dataclass

import torch
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

    def __post_init__(self) -> None:
        if self.ch % GROUPS:
            raise ValueError(f"ch is {self.ch}; it must be a multiple of {GROUPS}")

    @property
    def factor(self) -> int:
        """Pixels a side that make one latent; each level but the last halves the picture."""
        return 2 ** (len(self.ch_mult) - 1)


class AutoencoderNetwork(nn.Module):
    """Images (b, c, H, W) to the moments of their latents, and latents to images."""

    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__()
        self.params = params
        self.encoder = Encoder(params)
        self.decoder = Decoder(params)


class Encoder(nn.Module):
    """(b, c, H, W) -> (b, 2z, H/f, W/f): mean and log variance of each latent channel."""

    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__()
        widths = [params.ch * m for m in params.ch_mult]
        self.conv_in = conv3(params.in_channels, params.ch)
        inputs = [params.ch, *widths]
        last = len(widths) - 1
        self.down = nn.ModuleList(
            DownLevel(inputs[i], width, params.num_res_blocks, halve=i < last)
            for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = conv3(widths[-1], 2 * params.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """(b, z, h, w) -> (b, c, f h, f w). Level i works at the resolution of the encoder's level i,
    so they run from the last to the first."""

    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__()
        widths = [params.ch * m for m in params.ch_mult]
        self.conv_in = conv3(params.z_channels, widths[-1])
        self.mid = Middle(widths[-1])
        inputs = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            UpLevel(inputs[i], width, params.num_res_blocks + 1, double=i > 0)
            for i, width in enumerate(widths)
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv3(widths[0], params.in_channels)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for i in reversed(range(len(self.up))):
            x = self.up[i](x)
        return self.conv_out(F.silu(self.norm_out(x)))


class DownLevel(nn.Module):
    """Residual blocks, then half the resolution."""

    def __init__(self, inputs: int, width: int, blocks: int, halve: bool) -> None:
        super().__init__()
        self.block = residual_blocks(inputs, width, blocks)
        self.downsample = Downsample(width) if halve else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class UpLevel(nn.Module):
    """Residual blocks, then twice the resolution."""

    def __init__(self, inputs: int, width: int, blocks: int, double: bool) -> None:
        super().__init__()
        self.block = residual_blocks(inputs, width, blocks)
        self.upsample = Upsample(width) if double else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """Attention over the whole picture between two residual blocks, at the lowest resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width)
        self.attn_1 = Attention(width)
        self.block_2 = ResidualBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


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


class Downsample(nn.Module):
    """A convolution of stride 2, padded at the right and the bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Each pixel four times, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = conv3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=1e-6)


def residual_blocks(inputs: int, width: int, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(inputs if i == 0 else width, width) for i in range(blocks))


def params_of(weights: dict[str, Tensor]) -> AutoencoderParams:
    """The sizes of weights under BFL's names; a KeyError names a tensor that is not there, a
    ValueError one that is no convolution's."""
    for name, tensor in weights.items():
        if "conv" in name and name.endswith("weight") and (tensor.ndim != 4 or not tensor.numel()):
            raise ValueError(f"{name} is {tuple(tensor.shape)}")
    first = weights["encoder.conv_in.weight"]  # (ch, in_channels, 3, 3)
    ch = first.shape[0]
    levels = _count(weights, "encoder.down.{}.block.0.conv1.weight")
    if not levels:
        raise KeyError("encoder.down.0.block.0.conv1.weight")
    widths = [weights[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
    return AutoencoderParams(
        in_channels=first.shape[1],
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=_count(weights, "encoder.down.0.block.{}.conv1.weight"),
        z_channels=weights["decoder.conv_in.weight"].shape[1],
    )


def _count(weights: dict[str, Tensor], pattern: str) -> int:
    """How many of the names pattern.format(0), pattern.format(1), ... there are in a row."""
    n = 0
    while pattern.format(n) in weights:
        n += 1
    return n


def empty_network(params: AutoencoderParams) -> AutoencoderNetwork:
    """A network whose parameters have shapes but no memory yet."""
    with torch.device("meta"):
        return AutoencoderNetwork(params)
