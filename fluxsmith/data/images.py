"""Images as tensors: from those of a source to the size and channels that the model sees, and to
[-1, 1] and back. `pictures` does the same for single pictures of any size."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxsmith.device import memory_of
from fluxsmith.errors import UserError

# ITU-R BT.601, as JPEG and Pillow weigh the channels.
LUMA = (0.299, 0.587, 0.114)


def fit(images: Tensor, size: int, channels: int, resize: str) -> Tensor:
    """(n, c, h, w) uint8 -> (n, channels, size, size) uint8."""
    needed, memory = len(images) * channels * size**2, memory_of(torch.device("cpu"))
    if memory and needed > memory:
        raise UserError(
            f"data.image_size={size}: {len(images):,} images of that size take "
            f"{needed / 2**30:,.1f} GiB, and this machine has {memory / 2**30:,.1f}; use less"
        )
    return convert_channels(to_size(images, size, resize), channels)


def to_size(images: Tensor, size: int, resize: str) -> Tensor:
    """Makes images (n, c, h, w) square, scaling bilinearly.

    `pad` shrinks what is larger and frames what is smaller in black; `stretch` ignores the shape;
    the crops bring the shorter side to `size` and cut the longer one in the middle.
    """
    height, width = images.shape[-2:]
    if resize == "pad":
        most = max(height, width, size)
        if most > size:
            images = _scaled(
                images, max(1, round(height * size / most)), max(1, round(width * size / most))
            )
        height, width = images.shape[-2:]
        top, left = (size - height) // 2, (size - width) // 2
        return F.pad(images, (left, size - width - left, top, size - height - top))
    if resize != "stretch":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        images = images[..., top : top + side, left : left + side]
    return _scaled(images, size, size)


def _scaled(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    scaled = F.interpolate(
        images.float(), (height, width), mode="bilinear", antialias=True, align_corners=False
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
