"""From an encoded picture of any mode and size to the uint8 pixels that the model sees, by threads
ahead of their use. Pillow releases the interpreter while it works, so they run at once, and nothing
has to be sent between processes."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, TiffImagePlugin
from torch import Tensor

from fluxsmith.data.images import Shape, Size, as_shape, framed, geometry
from fluxsmith.data.records import (
    DataSettings,
    EncodedPicture,
    FilePart,
    PictureError,
    Record,
    reason,
)

T = TypeVar("T")

# Formats that are documents, need another program, or that Pillow knows without decoding them.
NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
# Notes such as a whole workflow, and large profiles, which Pillow takes for attacks by default.
PngImagePlugin.MAX_TEXT_CHUNK = 2**26
PngImagePlugin.MAX_TEXT_MEMORY = 2**28
WIDTH, HEIGHT = 0x0100, 0x0101  # tags of a TIFF, as its pixels are stored
ORIENTATION = 0x0112  # the EXIF tag; from 5 on, width and height change places
# Of the colours by which sRGB's own profile is known, and by how much it may move one: as its forms
# by other makers do, by their rounding.
LEVELS = np.array([0, 10, 20, 40, 60, 90, 120, 150, 180, 210, 235, 255], dtype=np.uint8)
NEAR = 3
XMP = "XML:com.adobe.xmp"  # notes of a PNG, which may say how it is turned
DRAFT = 2  # a JPEG is decoded at no less than this many times the size that is wanted


@lru_cache
def endings() -> frozenset[str]:
    """The endings of files that Pillow decodes, such as .png."""
    known = Image.registered_extensions()
    return frozenset(e for e, kind in known.items() if kind in Image.OPEN) - {
        e for e, kind in known.items() if kind in NO_PICTURES
    }


def decode(encoded: EncodedPicture, size: Size, channels: int, resize: str, place: float) -> Tensor:
    """The picture as (channels, height, width) uint8; a PictureError where it can't be read."""
    picture = open_picture(encoded, max(as_shape(size)))
    return fit_picture(picture, size, channels, resize, place)


def picture_size(encoded: EncodedPicture) -> tuple[int, int]:
    """(width, height) upright, from the header alone."""
    with _opened(encoded) as picture:
        # To look for it behind a PNG's pixels, Pillow would decode them.
        unsaid = picture.format == "PNG" and not picture.info.keys() & {"exif", XMP}
        turned = not unsaid and picture.getexif().get(ORIENTATION, 1) >= 5
        width, height = picture.size
        if isinstance(picture, TiffImagePlugin.TiffImageFile):  # newer Pillows say it upright
            width, height = picture.tag_v2[WIDTH], picture.tag_v2[HEIGHT]
        return (height, width) if turned else (width, height)


def open_picture(encoded: EncodedPicture, enough: int | None = None) -> Image.Image:
    """The picture upright, in sRGB, on white where it is transparent, at 8 bits: of mode L or RGB.

    Where `enough` pixels a side suffice, a large JPEG is decoded at half, a quarter or an eighth of
    its size, which is several times as fast.
    """
    with _opened(encoded) as picture:
        if enough is not None:
            picture.draft(None, (DRAFT * enough, DRAFT * enough))
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        return _plain(_in_srgb(picture))


def is_transparent(encoded: EncodedPicture) -> bool:
    """Whether any of it can be seen through."""
    with _opened(encoded) as picture:
        if not picture.has_transparency_data:
            return False
        return bool(np.asarray(picture.convert("RGBA").getchannel("A")).min(initial=255) < 255)


def is_picture(encoded: bytes) -> bool:
    """Whether it begins as a picture does."""
    try:
        with _opened(encoded):
            return True
    except PictureError:
        return False


@contextmanager
def _opened(encoded: EncodedPicture) -> Iterator[Image.Image]:
    """The picture, not decoded yet. Any error inside becomes a PictureError."""
    try:
        held = encoded.read() if isinstance(encoded, FilePart) else encoded
        with Image.open(io.BytesIO(held) if isinstance(held, bytes) else held) as picture:
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


def _in_srgb(picture: Image.Image) -> Image.Image:
    """The colours that the picture's own profile means. A profile that can't be used, or that is of
    other colours than the picture, is left out of account, as viewers do."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode[0] in "I1F":
        return picture
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    transform = _to_srgb(profile, picture.mode)
    if transform is None:
        return picture
    alpha = picture.getchannel("A") if picture.mode in ("RGBA", "LA") else None
    base = picture.convert(picture.mode.removesuffix("A")) if alpha is not None else picture
    seen = ImageCms.applyTransform(base, transform)
    assert seen is not None
    if alpha is not None:
        seen.putalpha(alpha)
    return seen


@lru_cache(maxsize=64)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours to sRGB; None where they are sRGB's already, whatever their name, or
    aren't known."""
    try:
        known = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(known, srgb, mode.removesuffix("A"), "RGB")
        if not mode.startswith("RGB"):
            return transform
        colours = np.stack(np.meshgrid(*[LEVELS] * 3), axis=-1).reshape(-1, 1, 3)
        seen = ImageCms.applyTransform(Image.fromarray(colours), transform)
        moved = np.abs(np.asarray(seen, dtype=np.int16) - colours)
        return transform if moved.max() > NEAR else None
    except (OSError, ImageCms.PyCMSError, ValueError):
        return None


def _plain(picture: Image.Image) -> Image.Image:
    """Any mode -> L or RGB."""
    if picture.mode.startswith("I"):
        return _from_16_bits(picture)
    if picture.mode == "F":
        raise PictureError("its pixels are floats, whose white is unknown; save it at 8 or 16 bits")
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        white = Image.new("RGBA", seen.size, "white")
        picture = Image.alpha_composite(white, seen)
    return _as_mode(picture, "L" if picture.mode in ("1", "L") else "RGB")


def _as_mode(picture: Image.Image, mode: str) -> Image.Image:
    """The picture itself where it is of that mode: a copy would take as long as the decoding."""
    return picture if picture.mode == mode else picture.convert(mode)


def _from_16_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits at 8, rounded."""
    levels = np.asarray(picture)
    if levels.size and not 0 <= levels.min() <= levels.max() <= 65535:
        raise PictureError("its pixels have more than 16 bits; save it at 8 or 16 bits")
    grey = ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 257 is odd: no ties
    return Image.fromarray(grey)


def fit_picture(
    picture: Image.Image, size: Size, channels: int, resize: str, place: float = 0.5
) -> Tensor:
    """A picture of mode L or RGB as (channels, height, width) uint8, scaled bilinearly; `resize`
    and `place` as in `images.geometry`."""
    box, scaled = geometry(*picture.size, size, resize, place)
    picture = _as_mode(picture, "L" if channels == 1 else "RGB")
    if box != (0, 0, *picture.size):
        picture = picture.crop(box)
    if picture.size != scaled:
        picture = picture.resize(scaled, Image.Resampling.BILINEAR)
    pixels = np.array(picture).reshape(picture.height, picture.width, channels)
    return framed(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), size)


@dataclass(frozen=True)
class Decoded:
    """A record with its pixels, (c, h, w) uint8, those of its reference after them; None where it
    can't be used."""

    record: Record
    pixels: Tensor | None
    bad: tuple[tuple[str, str], ...] = ()  # (name, reason) of what could not be used


def decode_record(
    record: Record, settings: DataSettings, place: float = 0.5, shape: Shape | None = None
) -> Decoded:
    """The record as the model sees it, in the shape of its batch, by default the square; `place` in
    [0, 1] is where a crop is cut."""
    try:
        if record.problem:
            raise PictureError(record.problem)
        size = shape or settings.image_size
        pair = [record.picture] if record.reference is None else [record.picture, record.reference]
        seen = [decode(one, size, settings.channels, settings.resize, place) for one in pair]
    except PictureError as error:
        return Decoded(record, None, ((record.name, str(error)),))
    return Decoded(record, torch.cat(seen))


# The same for any way to get at what the model sees of a record.
Decode = Callable[[Record, DataSettings, float, Shape | None], Decoded]


def in_order(pool: Executor, jobs: Iterable[Callable[[], T]], ahead: int) -> Iterator[T]:
    """The results of the jobs, of which at most `ahead` are begun before they are asked for."""
    begun: deque[Future[T]] = deque()
    for job in jobs:
        begun.append(pool.submit(job))
        if len(begun) > ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()
