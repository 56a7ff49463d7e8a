"""Numbers as people read them: as many digits as say something, the same within one row."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

NOTHING = "–"
UNFIT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # for HTML and UTF-8


def is_number(value: Any) -> TypeGuard[float]:
    """Not so for NaN and infinity, which a model whose training failed may give."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def number(value: Any, scale: Any = None) -> str:
    """Four significant digits, or as many decimals as `scale`, the row's main number, has."""
    if not is_number(value):
        return NOTHING
    scale = abs(scale if is_number(scale) else value)
    if isinstance(value, int):
        said = f"{value:,}"
    elif scale and not 1e-6 <= scale < 1e7:
        said = f"{value:.3g}"
    else:
        decimals = min(8, max(0, 3 - math.floor(math.log10(scale)))) if scale else 3
        said = f"{value:,.{decimals}f}"
    return said.replace("-", "−")


def percent(value: Any, scale: Any = None) -> str:
    """97.3%, with a second decimal near either end, and as many for the ends of an interval."""
    if not is_number(value):
        return NOTHING
    scale = abs(scale if is_number(scale) else value)
    near_an_end = 0 < scale < 0.1 or 0.99 < scale < 1
    return f"{100 * value:.{2 if near_an_end else 1}f}%".replace("-", "−")


def interval(ends: Sequence[float], show: Callable[..., str] = number, scale: Any = None) -> str:
    """ "0.12 to 0.34"."""
    return " to ".join(show(end, scale) for end in ends)


def prompt_name(caption: str) -> str:
    return caption or "(no prompt)"


def legible(text: str) -> str:
    """The text with what HTML or UTF-8 can't hold shown as U+FFFD."""
    return UNFIT.sub("\ufffd", text)


def shortened(text: str, most: int = 40) -> str:
    """On one line and no longer than `most`."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def p_value(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"
