"""How large nested data is with all that it shares written out: files can be small and yet explode.

Forty lists, each holding the next one twice, are nothing to read and forever to walk through.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

Parts = Callable[[Any], Iterable[Any] | None]


def parse_json(text: str | bytes) -> Any:
    """Plain data from JSON; a ValueError where it is damaged, or nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parts_of(data: Any) -> Iterable[Any] | None:
    """What plain data consists of; None for a single value."""
    if isinstance(data, dict):
        return data.values()
    return data if isinstance(data, (list, tuple)) else None


def written_out(data: Any, most: int, parts: Parts = parts_of) -> int:
    """The number of values, or something above `most` where it is larger, contains itself, or is
    nested too deeply to walk through."""
    known: dict[int, int] = {}

    def size(item: Any) -> int:
        inside = parts(item)
        if inside is None:
            return 1
        if id(item) not in known:
            known[id(item)] = most  # until it is known: what contains itself never ends
            known[id(item)] = 1 + sum(map(size, inside))
        return known[id(item)]

    try:
        return size(data)
    except RecursionError:
        return most + 1
