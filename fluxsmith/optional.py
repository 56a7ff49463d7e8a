"""Libraries that only some users need, imported when they are, with a line that says how to get
them."""

from importlib import import_module
from typing import Any

from fluxsmith.errors import UserError


def optional(module: str, extra: str, purpose: str) -> Any:
    """The module; a UserError that names the extra where it can't be imported."""
    try:
        return import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise UserError(
            f"{purpose} needs {missing.partition('.')[0]}: pip install 'fluxsmith[{extra}]'"
        ) from None
