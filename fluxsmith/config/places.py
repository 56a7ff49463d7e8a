"""The files that a config names, on this machine and elsewhere."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxsmith.config.comparing import free_keys
from fluxsmith.storage.hub_folder import HUB_ID


def with_places(
    config: Mapping[str, Any], change: Callable[[str, str], str], keys: Sequence[str] = ()
) -> dict[str, Any]:
    """The plain data of a config with its paths changed by `change(key, path)`: those under
    `keys`, by default all."""
    found = {k: dict(value) if isinstance(value, Mapping) else value for k, value in config.items()}
    for key in keys or ("output_dir", "train.init_from", *free_keys(config)):
        section, _, last = key.rpartition(".")
        target = found.get(section) if section else found
        if isinstance(target, dict) and last in target:
            target[last] = _each(key, target[last], change)
    return found


def absolute(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every relative path that is here made absolute, so that it holds from any
    folder."""
    there = os.path.exists  # a Path raises for a name that is too long
    return with_places(config, lambda _, path: str(Path(path).absolute()) if there(path) else path)


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it may leave this machine: only the last name of each path is left."""
    return with_places(config, lambda _, path: portable_name(path))


def portable_name(path: str) -> str:
    """The last name of a path; a hub id as it is."""
    if HUB_ID.fullmatch(path) and not os.path.exists(path):  # noqa: PTH110
        return path
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def found_in(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an export with the files of the model that lie in its folder named from here;
    those of data are the business of who trains."""

    def place(_: str, path: str) -> str:
        inside = folder / path
        return str(inside.absolute()) if path and inside.exists() else path

    keys = [key for key in free_keys(config) if not key.startswith("data.")]
    return with_places(config, place, keys)


def _each(key: str, value: Any, change: Callable[[str, str], str]) -> Any:
    if isinstance(value, list):
        return [_each(key, one, change) for one in value]
    if isinstance(value, Mapping):
        return {_each(key, one, change): times for one, times in value.items()}
    return change(key, value) if isinstance(value, str) else value
