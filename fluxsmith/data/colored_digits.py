"""Digits painted in one of eight colours on one of eight backgrounds. Pairs of colour and digit can
be kept out of training, to test whether a model composes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxsmith.data.captions import DIGIT_CLASSES, WORDS
from fluxsmith.data.imageset import Classes, ImageSet
from fluxsmith.data.records import Split
from fluxsmith.errors import UserError
from fluxsmith.randomness import generator

# The corners of the RGB cube: no eight colours are further apart.
PALETTE = {
    "black": (0, 0, 0),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
    "white": (255, 255, 255),
}
COLORS = tuple(PALETTE)

PHRASINGS = (
    "a {ink} {word} on {paper}",
    "a {ink} {numeral} on {paper}",
    "{numeral} in {ink} on {paper}",
    "on {paper}, a {ink} {word}",
)
INSTRUCTIONS = ("make it {ink}", "paint it {ink}", "{ink}")

# By base: its module, the frame that shows the background all around, and how often each digit is
# painted, so that the few embedded ones meet every colour.
BASES = {"digits": ("fluxsmith.data.digits", 1, 8), "mnist": ("fluxsmith.data.mnist", 2, 1)}


@dataclass(frozen=True)
class Settings:
    LOCAL: ClassVar = ("path",)

    path: Annotated[str | None, "Folder of MNIST's files; searched for by default."] = None
    base: Annotated[Literal["digits", "mnist"], "The digits that are painted."] = "digits"
    hold_out: Annotated[
        list[list[str | int]],
        "Pairs of colour and digit that training never sees, such as [red, 7].",
    ] = field(default_factory=list)
    edits: Annotated[
        bool, "Pairs to train edits with: the digit in another ink, and an instruction to paint it."
    ] = False

    def __post_init__(self) -> None:
        if self.path is not None and self.base == "digits":
            raise ValueError(f"path={self.path}: data.base=digits needs no files; remove the key")


def load(settings: Settings, split: Split) -> ImageSet:
    """Images (n, 3, h, w): 10x10 of the embedded digits, 32x32 of MNIST's.

    A label is a triple of digit, ink and paper, a class is a digit. The pairs (ink, digit) in
    `hold_out` are left out of the split `train`, and in the split `test`. `edits` have references,
    and captions that say their ink alone.
    """
    module, frame, times = BASES[settings.base]
    held_out = check_hold_out(settings.hold_out)
    digits: ImageSet = import_module(module).load(settings, split)
    grey = F.pad(digits.images, (frame,) * 4).repeat(times, 1, 1, 1)  # (n, 1, h, w)
    digit = digits.labels.repeat(times)
    ink, paper = _colors(len(digits), times, split)
    if split == "train" and held_out:
        seen = torch.tensor(
            [pair not in held_out for pair in zip(ink.tolist(), digit.tolist(), strict=True)]
        )
        grey, digit, ink, paper = grey[seen], digit[seen], ink[seen], paper[seen]
    triples = torch.stack([digit, ink, paper], dim=1)
    distinct, labels = triples.unique(dim=0, return_inverse=True)
    described = instructions if settings.edits else captions
    return ImageSet(
        paint(grey, ink, paper),
        labels,
        [described(*triple) for triple in distinct.tolist()],
        Classes(DIGIT_CLASSES.names, distinct[:, 0].clone()),
        paint(grey, _another(ink, paper, split), paper) if settings.edits else None,
    )


def paint(grey: Tensor, ink: Tensor, paper: Tensor) -> Tensor:
    """White on black (n, 1, h, w) in colours, by their places in the palette: (n, 3, h, w)."""
    palette = torch.tensor(list(PALETTE.values()), dtype=torch.float32)
    share = grey.float() / 255
    dark, light = palette[paper][..., None, None], palette[ink][..., None, None]  # (n, 3, 1, 1)
    return (dark + share * (light - dark)).round().to(torch.uint8)


def captions(digit: int, ink: int, paper: int) -> tuple[str, ...]:
    """All captions of a picture."""
    return tuple(
        phrasing.format(ink=COLORS[ink], paper=COLORS[paper], word=WORDS[digit], numeral=str(digit))
        for phrasing in PHRASINGS
    )


def instructions(digit: int, ink: int, paper: int) -> tuple[str, ...]:
    """All captions of an edit, which are of its ink."""
    return tuple(phrasing.format(ink=COLORS[ink]) for phrasing in INSTRUCTIONS)


def check_hold_out(pairs: Sequence[Sequence[str | int]]) -> frozenset[tuple[int, int]]:
    """The pairs as numbers (ink, digit); a UserError names the first that is not valid."""
    found = set()
    for pair in pairs:
        color, digit = (str(part) for part in pair) if len(pair) == 2 else ("", "")
        numeral = digit if digit.isdecimal() else str(WORDS.index(digit)) if digit in WORDS else ""
        if color not in PALETTE or numeral not in DIGIT_CLASSES.names:
            raise UserError(
                f"data.hold_out: {list(pair)} is not a colour and a digit, such as [red, 7]; the "
                f"colours are {', '.join(COLORS)}"
            )
        found.add((COLORS.index(color), int(numeral)))
    return frozenset(found)


def _colors(n: int, times: int, split: Split) -> tuple[Tensor, Tensor]:
    """Ink and paper, (times n,) each, never equal; a digit that is painted again gets another ink.
    The same world for every run."""
    draw = generator("colored-digits", split)
    first = torch.randint(len(COLORS), (n,), generator=draw)
    ink = torch.cat([(first + again) % len(COLORS) for again in range(times)])
    paper = torch.randint(len(COLORS) - 1, (n * times,), generator=draw)
    return ink, paper + (paper >= ink)


def _another(ink: Tensor, paper: Tensor, split: Split) -> Tensor:
    """A third colour for each picture (n,): that of the digit before its edit."""
    chances = torch.rand(len(ink), len(COLORS), generator=generator("recolored-digits", split))
    return chances.scatter(1, torch.stack([ink, paper], dim=1), -1.0).argmax(1)
