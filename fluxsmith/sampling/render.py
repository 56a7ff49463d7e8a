"""Pictures for people: grids with captions, filmstrips, animations, and PNGs that say how they
were made. Images are uint8 tensors (c, h, w), one or three channels."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from fluxsmith.storage.files import write_whole

CELL = 96  # pixels; smaller pictures are magnified by a whole factor to about this
GAP = 8
FONT_SIZE = 13
LINES = 3  # of a caption
INK, PAPER = (40, 40, 40), (255, 255, 255)


def to_pil(image: Tensor) -> Image.Image:
    """(c, h, w) uint8 -> a Pillow image, grey or RGB."""
    array = image.permute(1, 2, 0).contiguous().numpy()  # (h, w, c)
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def magnified(image: Tensor) -> Image.Image:
    """The picture with each pixel shown as a square, CELL pixels wide or a little more."""
    picture = to_pil(image).convert("RGB")
    factor = max(1, math.ceil(CELL / picture.width))
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)


def grid(images: Tensor, captions: Sequence[str], columns: int | None = None) -> Image.Image:
    """Pictures (n, c, h, w) in rows, each with its caption beneath, in as many lines as the longest
    one needs, up to LINES, and shortened where that is not enough."""
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images but {len(captions)} captions")
    columns = columns or _columns(len(captions))
    rows = math.ceil(len(captions) / columns)
    pictures = [magnified(image) for image in images]
    width, height = pictures[0].size
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    texts = [_wrapped(caption or "(no prompt)", width, measure) for caption in captions]
    line = (FONT_SIZE + 3) * max(text.count("\n") + 1 for text in texts) + 4
    sheet = Image.new(
        "RGB",
        (columns * (width + GAP) + GAP, rows * (height + line + GAP) + GAP),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for i, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        left = GAP + (i % columns) * (width + GAP)
        top = GAP + (i // columns) * (height + line + GAP)
        sheet.paste(picture, (left, top))
        at = (left + width / 2, top + height + 3)
        draw.text(at, text, INK, _font(), anchor="ma", align="center")
    return sheet


def filmstrip(images: Sequence[Tensor], times: Sequence[float], most: int = 11) -> Image.Image:
    """Stages of one picture from noise to data, side by side, with their t beneath."""
    last = len(images) - 1
    shown = sorted({round(i * last / (most - 1)) for i in range(most)}) if last else [0]
    captions = [f"t = {times[i]:.2f}" for i in shown]
    return grid(torch.stack([images[i] for i in shown]), captions, columns=len(shown))


def save_gif(path: Path, frames: Sequence[Image.Image], seconds: float = 2.0) -> None:
    """An endless animation that rests on its last frame."""
    each = max(20, int(1000 * seconds / len(frames)))  # milliseconds
    durations = [each] * (len(frames) - 1) + [1500]
    options = {"append_images": frames[1:], "duration": durations, "loop": 0}
    write_whole(path, lambda to: frames[0].save(to, format="GIF", save_all=True, **options))


def save_png(path: Path, picture: Image.Image, metadata: Mapping[str, Any]) -> None:
    """A PNG with each piece of metadata as a text chunk; the same input gives the same bytes."""
    info = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value)
        info.add_itxt(key, text)  # UTF-8, unlike a plain text chunk
    write_whole(path, lambda to: picture.save(to, format="PNG", pnginfo=info))


def _columns(n: int) -> int:
    """A sheet somewhat wider than high, its last row full where n allows it: 20 -> 5, 16 -> 4."""
    wanted = math.sqrt(1.6 * n)
    full = [c for c in range(1, n + 1) if n % c == 0 and wanted / 1.6 <= c <= wanted * 1.6]
    return min(full, key=lambda c: abs(c - wanted)) if full else math.ceil(wanted)


def _wrapped(caption: str, width: int, draw: ImageDraw.ImageDraw) -> str:
    """The caption in at most LINES lines, its end replaced by dots where it is longer."""
    text = "".join(c if c.isprintable() else " " for c in caption[:200])
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and (draw.textlength(longer, _font()) <= width or len(lines) == LINES):
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(_fitted(line, width, draw) for line in lines)


def _fitted(text: str, width: int, draw: ImageDraw.ImageDraw) -> str:
    if draw.textlength(text, _font()) <= width:
        return text
    while text and draw.textlength(text + "…", _font()) > width:
        text = text[:-1]
    return text + "…"


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: most scripts but Chinese, Japanese and Korean."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), FONT_SIZE)
