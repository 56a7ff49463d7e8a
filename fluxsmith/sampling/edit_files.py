"""An edit from files: pictures and masks as people have them, read as training reads pictures."""

import logging
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from fluxsmith.data.images import Shape, geometry, to_unit
from fluxsmith.data.pictures import fit_picture, is_transparent, open_picture
from fluxsmith.data.records import PictureError
from fluxsmith.errors import UserError
from fluxsmith.pipeline import Pipeline
from fluxsmith.sampling.edit import Edit
from fluxsmith.sampling.generate import check_size

SAME_PROPORTIONS = 0.02  # by which the proportions of a mask may differ from those of its picture

ROUNDING = 1e-6  # of a pixel: 784 * (512 / 784) is a little less than 512

log = logging.getLogger(__name__)


def read_edit(
    pipeline: Pipeline,
    image: Path | None,
    mask: Path | None,
    size: Shape | None,
    *,
    strength: float | None = None,
    grow: int = 0,
    blur: float = 0.0,
) -> tuple[Edit | None, Shape | None]:
    """The edit that files describe, and the (height, width) to draw: the one asked for, else the
    picture's own, cut down to what the model takes.

    The mask is grown by `grow` pixels, then its edge is blurred with a deviation of `blur`, both in
    the picture that is drawn.
    """
    options = {"--mask-grow": grow or None, "--mask-blur": blur or None}
    if image is None:
        for option, value in {"--strength": strength, "--mask": mask, **options}.items():
            if value is not None:
                raise UserError(f"{option} {value}: says what to do with --init-image; give one")
        return None, size
    if mask is None:
        for option, value in options.items():
            if value is not None:
                raise UserError(f"{option} {value}: says what to do with --mask; give one")
    if size is not None:
        check_size(size, pipeline.size_unit)
    picture, kontext = _opened("--init-image", image), _is_kontext(pipeline)
    own = _own_size(pipeline, picture)
    seen = own if size is None or kontext else size
    box = _cut(picture.size, seen, exact=size is None and not kontext)
    pixels = fit_picture(picture.crop(box), seen, pipeline.autoencoder.image_channels, "stretch")
    found = None if mask is None else _mask(mask, picture.size, box, seen, grow, blur)
    return Edit(to_unit(pixels), strength, found), size or own


def _is_kontext(pipeline: Pipeline) -> bool:
    return pipeline.config.model.conditioning == "kontext"


def _own_size(pipeline: Pipeline, picture: Image.Image) -> Shape:
    """The picture's (height, width) in whole tokens; a reference has no more pixels than the
    pictures that its model was trained with."""
    unit, scale = pipeline.size_unit, 1.0
    if _is_kontext(pipeline):
        area = picture.width * picture.height
        scale = min(1.0, pipeline.config.data.image_size / math.sqrt(area))
    height, width = (
        max(unit, int(s * scale + ROUNDING) // unit * unit) for s in (picture.height, picture.width)
    )
    return height, width


def _cut(size: tuple[int, int], shape: Shape, exact: bool) -> tuple[int, int, int, int]:
    """The middle of a picture of (width, height) that is seen in a shape. `exact`: what is over is
    cut off, so that nothing needs to be scaled."""
    (width, height), (high, wide) = size, shape
    if not exact or high > height or wide > width:
        return geometry(width, height, shape, "center-crop")[0]
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _opened(option: str, path: Path) -> Image.Image:
    try:
        return open_picture(path)
    except PictureError as error:
        raise UserError(f"{option} {path}: {error}; give a PNG or JPEG file") from None


def _mask(
    path: Path,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    shape: Shape,
    grow: int,
    blur: float,
) -> Tensor:
    """(1, H, W) in [0, 1]: 1 where the file is lighter than the middle grey, as far as a picture of
    (width, height) `size` is seen. Where it is made smaller, the lightest pixel counts, so that
    thin lines stay."""
    opened = _opened("--mask", path)
    if is_transparent(path):
        raise UserError(
            f"--mask {path}: is transparent in places, which may mean either; save it in black and "
            f"white, white where the picture is drawn anew"
        )
    (width, height), (own_width, own_height) = size, opened.size
    if abs(own_width * height / (own_height * width) - 1) > SAME_PROPORTIONS:
        raise UserError(
            f"--mask {path}: has {own_width}x{own_height} pixels, and the picture has "
            f"{width}x{height}; give it the same proportions"
        )
    white = torch.from_numpy(np.array(opened.convert("L")) >= 128).float()[None]  # (1, H, W)
    left, top, right, bottom = box
    white = F.adaptive_max_pool2d(white, (height, width))[:, top:bottom, left:right]
    white = F.adaptive_max_pool2d(white, shape)
    if grow:
        for side in ((2 * grow + 1, 1), (1, 2 * grow + 1)):
            white = F.max_pool2d(white, side, stride=1, padding=(side[0] // 2, side[1] // 2))
    if white.min() == white.max():
        what = "white everywhere: all" if white.any() else "black everywhere: nothing"
        log.warning("--mask %s: is %s of the picture is drawn anew", path, what)
    if not blur:
        return white
    grey = Image.fromarray((white[0] * 255).to(torch.uint8).numpy())
    blurred = grey.filter(ImageFilter.GaussianBlur(blur))
    return torch.from_numpy(np.array(blurred)).float()[None] / 255
