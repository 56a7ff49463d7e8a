"""From an encoded picture of any mode and size to the uint8 pixels that the model sees."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fluxsmith.data.records import PictureError

ENDINGS = ("bmp", "gif", "jp2", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp")
ORIENTATION = 0x0112  # the EXIF tag; from 5 on, width and height change places
MOST_PIXELS = 2**26  # of a picture, such as 8192 x 8192; a JPEG's after it was decoded smaller
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
        if picture.width * picture.height > MOST_PIXELS:  # a small file can unpack to any size
            raise PictureError(
                f"it has {picture.width} x {picture.height} pixels; more than {MOST_PIXELS:,} take "
                f"too much memory: save it smaller"
            )
        picture.load()
        return _plain(ImageOps.exif_transpose(picture))


@contextmanager
def _opened(encoded: bytes | Path) -> Iterator[Image.Image]:
    """The picture unread; whatever goes wrong with it inside is a PictureError."""
    try:
        if isinstance(encoded, Path) and encoded.exists() and not encoded.is_file():
            raise PictureError("it is no file")  # a terminal or a pipe would keep us waiting
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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        unknown = "cannot identify image file" in reason
        raise PictureError("it is no image that Pillow knows" if unknown else reason) from None


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
    """Grey of 16 bits at 8, rounded; the one transparent level that a PNG may name is white."""
    levels = np.asarray(picture)
    if levels.size and not 0 <= levels.min() <= levels.max() <= 65535:
        raise PictureError("its pixels have more than 16 bits; save it at 8 or 16 bits")
    grey = ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 257 is odd: no ties
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        grey[levels == transparent] = 255
    return Image.fromarray(grey)


def fit_picture(
    picture: Image.Image, size: int, channels: int, resize: str, place: float = 0.5
) -> Tensor:
    """A picture of mode L or RGB as (channels, size, size) uint8, scaled bilinearly.

    `pad` shrinks what is larger and frames what is smaller in black; `stretch` ignores the shape;
    the crops bring the shorter side to `size` and cut the longer one, at `place` in [0, 1].
    """
    picture = picture.convert("L" if channels == 1 else "RGB")
    if resize == "pad":
        fitted = _padded(picture, size)
    elif resize == "stretch":
        fitted = _scaled(picture, (size, size))
    else:
        fitted = _cropped(picture, size, place)
    pixels = np.array(fitted)
    return torch.from_numpy(pixels.reshape(size, size, channels)).permute(2, 0, 1).contiguous()


def _scaled(picture: Image.Image, to: tuple[int, int]) -> Image.Image:
    return picture if picture.size == to else picture.resize(to, Image.Resampling.BILINEAR)


def _padded(picture: Image.Image, size: int) -> Image.Image:
    longest = max(picture.size)
    if longest > size:
        width, height = (max(1, round(side * size / longest)) for side in picture.size)
        picture = _scaled(picture, (width, height))
    canvas = Image.new(picture.mode, (size, size))
    canvas.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return canvas


def _cropped(picture: Image.Image, size: int, place: float) -> Image.Image:
    side = min(picture.size)
    left, top = (int(place * (length - side)) for length in picture.size)
    return _scaled(picture.crop((left, top, left + side, top + side)), (size, size))
