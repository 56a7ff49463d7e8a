"""What a page is made of, beside paragraphs of plain text. The template gives each its markup."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image
from torch import Tensor

from fluxsmith.sampling.render import to_pil

SHOWN = 64  # CSS pixels, the width that small pictures are magnified to by a whole factor
LARGEST = 256  # pixels; larger pictures are reduced, so that the page can still be mailed


@dataclass(frozen=True)
class Table:
    kind: ClassVar = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]  # the first cell of a row names it; a cell may have two lines
    folded: bool = False  # shown on a click


@dataclass(frozen=True)
class Plot:
    kind: ClassVar = "plot"
    title: str
    source: str  # a data URI
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    source: str  # a data URI
    width: int  # CSS pixels
    height: int
    alt: str  # for those who don't see it
    below: str = ""

    @classmethod
    def of(cls, image: Tensor, alt: str, below: str = "") -> "Picture":
        """Of (c, h, w) uint8, one or three channels."""
        drawn = to_pil(image.cpu())
        if max(drawn.size) > LARGEST:
            drawn.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        drawn.save(file, format="PNG", optimize=True)
        width = min(drawn.width * max(1, round(SHOWN / drawn.width)), 2 * SHOWN)
        height = round(width * drawn.height / drawn.width)
        return cls(data_uri("image/png", file.getvalue()), width, height, alt, below)


@dataclass(frozen=True)
class Pictures:
    kind: ClassVar = "pictures"
    rows: Sequence[tuple[str, Sequence[Picture]]]  # a name and its pictures
    layout: str = "strips"  # rows beneath each other, or "pairs", side by side


Part = str | Table | Plot | Pictures


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
