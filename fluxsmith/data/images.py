"""Images at the size and with the channels that the model sees, and to [-1, 1] and back. Where a
picture lands in its frame is the same for tensors here and for single files in `pictures`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxsmith.device import memory_of
from fluxsmith.errors import UserError

# ITU-R BT.601, as JPEG and Pillow weigh the channels.
LUMA = (0.299, 0.587, 0.114)

Shape = tuple[int, int]  # (height, width) in pixels
Size = int | Shape  # a square's side, or a shape


def as_shape(size: Size) -> Shape:
    return (size, size) if isinstance(size, int) else size


def fit(images: Tensor, size: Size, channels: int, resize: str) -> Tensor:
    """(n, c, h, w) uint8 -> (n, channels, height, width) uint8."""
    height, width = as_shape(size)
    needed, memory = len(images) * channels * height * width, memory_of(torch.device("cpu"))
    if memory and needed > memory:
        raise UserError(
            f"data.image_size={max(height, width)}: {len(images):,} images of that size take "
            f"{needed / 2**30:,.1f} GiB, and this machine has {memory / 2**30:,.1f}; use less"
        )
    return convert_channels(to_size(images, size, resize), channels)


def geometry(
    width: int, height: int, size: Size, resize: str, place: float = 0.5
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """The part that is kept of a picture, (left, top, right, bottom), and the (width, height) that
    it is scaled to.

    `pad` shrinks what is larger, and leaves the rest to be framed; `stretch` ignores the shape; the
    crops keep as much as has the frame's shape, and cut the rest, at `place` in [0, 1].
    """
    whole, (high, wide) = (0, 0, width, height), as_shape(size)
    if resize == "pad":
        to, of = min((wide, width), (high, height), (1, 1), key=lambda ratio: ratio[0] / ratio[1])
        return whole, (max(1, round(width * to / of)), max(1, round(height * to / of)))
    if resize == "stretch":
        return whole, (wide, high)
    kept = min(width, max(1, round(height * wide / high)))
    tall = min(height, max(1, round(width * high / wide)))
    left, top = int(place * (width - kept)), int(place * (height - tall))
    return (left, top, left + kept, top + tall), (wide, high)


def framed(images: Tensor, size: Size) -> Tensor:
    """Images (..., h, w) in the middle of a black frame."""
    (height, width), (high, wide) = images.shape[-2:], as_shape(size)
    top, left = (high - height) // 2, (wide - width) // 2
    return F.pad(images, (left, wide - width - left, top, high - height - top))


def to_size(images: Tensor, size: Size, resize: str) -> Tensor:
    """Brings images (n, c, h, w) to one size, scaling bilinearly, as `geometry` says."""
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
