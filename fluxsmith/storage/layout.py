"""Names of layouts, NAME/NUMBER: a greater number is that of a newer version."""

import re
from pathlib import Path
from typing import Any

from fluxsmith.errors import UserError


def number_of(found: Any, known: str) -> int | None:
    """The number in `found`, where that is a layout of the name that `known` has."""
    name = known.rpartition("/")[0]
    match = re.fullmatch(rf"{name}/(\d{{1,9}})", found) if isinstance(found, str) else None
    return None if match is None else int(match[1])


def refuse_newer(path: Path, found: Any, known: str) -> None:
    """Raises a UserError where a newer version wrote what is at `path`."""
    if (number_of(found, known) or 0) > (number_of(known, known) or 0):
        raise UserError(
            f"{path} was written by a newer version of fluxsmith, in the format {found}, and this "
            f"one reads {known}: upgrade fluxsmith"
        )
