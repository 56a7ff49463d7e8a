"""From an encoded picture of any mode and size to the uint8 pixels that the model sees, by threads
ahead of their use. Pillow releases the interpreter while it works, so they run at once, and nothing
has to be sent between processes."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fluxsmith.data.images import framed, geometry
from fluxsmith.data.records import DataSettings, PictureError, Record, reason

T = TypeVar("T")

ENDINGS = ("bmp", "gif", "jp2", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp")
ORIENTATION = 0x0112  # the EXIF tag; from 5 on, width and height change places
DRAFT = 2  # a JPEG is decoded at no less than this many times the size that is wanted


def decode(encoded: bytes | Path, size: int, channels: int, resize: str, place: float) -> Tensor:
    """The picture as (channels, size, size) uint8; a PictureError where it can't be read."""
    return fit_picture(open_picture(encoded, size), size, channels, resize, place)


def picture_size(encoded: bytes | Path) -> tuple[int, int]:
    """(width, height) upright, from the header alone."""
    with _opened(encoded) as picture:
        turned = picture.getexif().get(ORIENTATION, 1) >= 5
        return (picture.height, picture.width) if turned else picture.size


def open_picture(encoded: bytes | Path, enough: int | None = None) -> Image.Image:
    """The picture upright, on white where it is transparent, at 8 bits: of mode L or RGB.

    Where `enough` pixels a side suffice, a large JPEG is decoded at half, a quarter or an eighth of
    its size, which is several times as fast.
    """
    with _opened(encoded) as picture:
        if enough is not None:
            picture.draft(None, (DRAFT * enough, DRAFT * enough))
        picture.load()
        return _plain(ImageOps.exif_transpose(picture))


@contextmanager
def _opened(encoded: bytes | Path) -> Iterator[Image.Image]:
    """The picture, not decoded yet. Any error inside becomes a PictureError."""
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as picture:
            yield picture
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError("there is no such file") from None
    except Image.DecompressionBombError:
        raise PictureError(
            f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, too many to be safe"
        ) from None
    except Exception as error:  # a damaged byte can raise anything in a decoder
        unknown = "cannot identify image file" in str(error)
        raise PictureError("no image that Pillow knows" if unknown else reason(error)) from None


def _plain(picture: Image.Image) -> Image.Image:
    """Any mode -> L or RGB."""
    if picture.mode.startswith("I"):
        return _from_16_bits(picture)
    if picture.mode == "F":
        raise PictureError("its pixels are floats, whose white is unknown; save it at 8 or 16 bits")
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        white = Image.new("RGBA", seen.size, "white")
        picture = Image.alpha_composite(white, seen).convert("RGB")
    if picture.mode in ("1", "L"):
        return picture.convert("L")
    return picture.convert("RGB")


def _from_16_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits at 8, rounded."""
    levels = np.asarray(picture)
    if levels.size and not 0 <= levels.min() <= levels.max() <= 65535:
        raise PictureError("its pixels have more than 16 bits; save it at 8 or 16 bits")
    grey = ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 257 is odd: no ties
    return Image.fromarray(grey)


def fit_picture(
    picture: Image.Image, size: int, channels: int, resize: str, place: float = 0.5
) -> Tensor:
    """A picture of mode L or RGB as (channels, size, size) uint8, scaled bilinearly; `resize` and
    `place` as in `images.geometry`."""
    box, scaled = geometry(*picture.size, size, resize, place)
    picture = picture.convert("L" if channels == 1 else "RGB").crop(box)
    if picture.size != scaled:
        picture = picture.resize(scaled, Image.Resampling.BILINEAR)
    pixels = np.array(picture).reshape(picture.height, picture.width, channels)
    return framed(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), size)


@dataclass(frozen=True)
class Decoded:
    """A record with its pixels, (c, size, size) uint8; None where it can't be used."""

    record: Record
    pixels: Tensor | None
    bad: tuple[tuple[str, str], ...] = ()  # (name, reason) of what could not be used


def decode_record(record: Record, settings: DataSettings, place: float = 0.5) -> Decoded:
    """The record as the model sees it; `place` in [0, 1] is where a crop is cut."""
    try:
        if not record.captions:
            raise PictureError("it has no caption")
        size, channels = settings.image_size, settings.channels
        pixels = decode(record.picture, size, channels, settings.resize, place)
    except PictureError as error:
        return Decoded(record, None, ((record.name, str(error)),))
    return Decoded(record, pixels)


def in_order(pool: Executor, jobs: Iterable[Callable[[], T]], ahead: int) -> Iterator[T]:
    """The results of the jobs, of which at most `ahead` are begun before they are asked for."""
    begun: deque[Future[T]] = deque()
    for job in jobs:
        begun.append(pool.submit(job))
        if len(begun) > ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()
