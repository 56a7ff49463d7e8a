"""From the images of a source to the size and channels that the model sees."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxsmith.errors import UserError

Split = Literal["train", "test"]

# ITU-R BT.601, as JPEG and Pillow weigh the channels.
LUMA = (0.299, 0.587, 0.114)


def fit(images: Tensor, size: int, channels: int, resize: str) -> Tensor:
    """(n, c, h, w) uint8 -> (n, channels, size, size) uint8."""
    return convert_channels(to_size(images, size, resize), channels)


def to_size(images: Tensor, size: int, resize: str) -> Tensor:
    """Makes images (n, c, h, w) square: `pad` with black, or `stretch` bilinearly."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if resize == "pad":
        top, left = (size - height) // 2, (size - width) // 2
        if min(top, left) < 0:
            raise UserError(
                f"data.image_size={size}: images of {height}x{width} can't be padded to less; "
                f"use {max(height, width)} or more, or data.resize=stretch"
            )
        return F.pad(images, (left, size - width - left, top, size - height - top))
    scaled = F.interpolate(
        images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return scaled.round().clamp(0, 255).to(torch.uint8)


def convert_channels(images: Tensor, channels: int) -> Tensor:
    """Grey (1) repeated to RGB (3), or RGB weighed to grey by ITU-R BT.601: uint8 (n, c, h, w)."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.repeat(1, 3, 1, 1)
    weights = torch.tensor(LUMA).view(1, 3, 1, 1)
    return (images.float() * weights).sum(1, keepdim=True).round().clamp(0, 255).to(torch.uint8)


def to_unit(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8; the inverse of `to_unit`."""
    return images.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
