"""Numbers as people read them: as many digits as say something, the same within one row."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

NOTHING = "–"

Show = Callable[[Any], str]


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, scale: Any = None) -> str:
    """Four significant digits, or as many decimals as `scale`, the row's main number, has."""
    if not is_number(value):
        return NOTHING
    if isinstance(value, int):
        return minus(f"{value:,}")
    scale = abs(scale if is_number(scale) else value)
    if scale and not 1e-6 <= scale < 1e7:
        return minus(f"{value:.3g}")
    decimals = min(8, max(0, 3 - math.floor(math.log10(scale)))) if scale else 3
    return minus(f"{value:,.{decimals}f}")


def percent(value: Any, scale: Any = None) -> str:
    """97.3%, with a second decimal near either end, and as many for the ends of an interval."""
    if not is_number(value):
        return NOTHING
    scale = abs(scale if is_number(scale) else value)
    near_an_end = 0 < scale < 0.1 or 0.99 < scale < 1
    return minus(f"{100 * value:.{2 if near_an_end else 1}f}%")


def interval(ends: Any, show: Callable[..., str] = number, scale: Any = None) -> str:
    """ "0.12 to 0.34"."""
    if not isinstance(ends, Sequence) or len(ends) != 2 or not all(map(is_number, ends)):
        return NOTHING
    return f"{show(ends[0], scale)} to {show(ends[1], scale)}"


def duration(seconds: Any) -> str:
    if not is_number(seconds):
        return NOTHING
    if seconds < 99.95:
        return f"{seconds:.1f} s" if seconds >= 0.1 or seconds == 0 else f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def minus(text: str) -> str:
    return text.replace("-", "−")


def plain(value: Any) -> str:
    """A setting as it would be typed."""
    if isinstance(value, float):
        return f"{value:g}"
    return NOTHING if value is None else str(value)


def setting(row: Mapping[str, Any], *without: str) -> str:
    """ "euler, 10 steps, guidance 2", of what the row names."""
    words = {"solver": "{}", "steps": "{} steps", "guidance": "guidance {}"}
    named = [
        form.format(plain(row[key]))
        for key, form in words.items()
        if row.get(key) is not None and key not in without
    ]
    return ", ".join(named)


def shortened(text: str, most: int = 40) -> str:
    """On one line and no longer than `most`."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def prompt_name(caption: str) -> str:
    return caption or "(no prompt)"
