"""Drawing from a picture in place of noise alone: image-to-image and inpainting."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fluxsmith.data.images import to_unit
from fluxsmith.errors import UserError
from fluxsmith.pipeline import Pipeline

STRENGTH = 0.6


@dataclass(frozen=True)
class Edit:
    """A picture to begin with: it is noised as far as `strength` says and drawn anew from there,
    where `mask` is 1 if there is one."""

    image: Tensor  # (c, H, W) in [-1, 1]
    strength: float = STRENGTH  # above 0; 1 leaves nothing of the picture
    mask: Tensor | None = None  # (1, H, W): 1 is drawn anew, 0 kept

    def check(self, size: tuple[int, int]) -> None:
        """Raises a UserError where a picture of size (height, width) can't be made from this."""
        if not 0 < self.strength <= 1:
            raise UserError(f"strength={self.strength}: must lie above 0 and at most at 1")
        for name, tensor in (("image", self.image), ("mask", self.mask)):
            if tensor is not None and tuple(tensor.shape[1:]) != size:
                raise UserError(
                    f"the {name} has {tensor.shape[1]}x{tensor.shape[2]} pixels and the picture "
                    f"{size[0]}x{size[1]}; make them equal"
                )


def read_edit(
    pipeline: Pipeline,
    image: Path | None,
    strength: float | None,
    mask: Path | None,
    size: tuple[int, int] | None,
) -> tuple[Edit | None, tuple[int, int] | None]:
    """The edit that files describe, and the (height, width) to draw: the one asked for, else the
    picture's own, cut down to what the model takes."""
    if image is None:
        for option, value in (("--strength", strength), ("--mask", mask)):
            if value is not None:
                raise UserError(f"{option} {value}: says what to do with --init-image; give one")
        return None, size
    picture = _opened(image).convert("RGB" if pipeline.autoencoder.image_channels == 3 else "L")
    if size is None:
        unit = pipeline.size_unit
        size = max(unit, picture.height // unit * unit), max(unit, picture.width // unit * unit)
    edit = Edit(
        to_unit(_pixels(_resized(picture, size))),
        STRENGTH if strength is None else strength,
        None if mask is None else _mask(mask, size),
    )
    return edit, size


def _mask(path: Path, size: tuple[int, int]) -> Tensor:
    """(1, H, W): 1 where the file is lighter than the middle grey, which is drawn anew."""
    return (_pixels(_resized(_opened(path).convert("L"), size)) >= 128).float()


def _opened(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
        return ImageOps.exif_transpose(picture)
    except Exception as error:  # a damaged picture can raise anything in its decoder
        reason = getattr(error, "strerror", None) or f"not a picture that can be read ({error})"
        raise UserError(f"{path}: {reason}; give a PNG or JPEG file") from None


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    if (picture.height, picture.width) == size:
        return picture
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _pixels(picture: Image.Image) -> Tensor:
    """(c, H, W) uint8."""
    array = np.array(picture)
    return torch.from_numpy(array[..., None] if array.ndim == 2 else array).permute(2, 0, 1)
