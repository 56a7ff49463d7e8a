"""Images at the size and with the channels that the model sees, and to [-1, 1] and back. Where a
picture lands in its square is the same for tensors here and for single files in `pictures`."""

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


def geometry(
    width: int, height: int, size: int, resize: str, place: float = 0.5
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """The part that is kept of a picture, (left, top, right, bottom), and the (width, height) that
    it is scaled to.

    `pad` shrinks what is larger, and leaves the rest to be framed; `stretch` ignores the shape; the
    crops bring the shorter side to `size` and cut the longer one, at `place` in [0, 1].
    """
    whole = (0, 0, width, height)
    if resize == "pad":
        longest = max(width, height, size)
        return whole, (
            max(1, round(width * size / longest)),
            max(1, round(height * size / longest)),
        )
    if resize == "stretch":
        return whole, (size, size)
    side = min(width, height)
    left, top = int(place * (width - side)), int(place * (height - side))
    return (left, top, left + side, top + side), (size, size)


def framed(images: Tensor, size: int) -> Tensor:
    """Images (..., h, w) in the middle of a black square."""
    height, width = images.shape[-2:]
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(images, (left, size - width - left, top, size - height - top))


def to_size(images: Tensor, size: int, resize: str) -> Tensor:
    """Makes images (n, c, h, w) square, scaling bilinearly, as `geometry` says."""
    height, width = images.shape[-2:]
    (left, top, right, bottom), scaled = geometry(width, height, size, resize)
    return framed(_scaled(images[..., top:bottom, left:right], *reversed(scaled)), size)


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
