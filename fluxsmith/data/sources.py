"""The sources by name. One is a module with a dataclass `Settings`, its keys in a config's data
section, and a function `load` from these to pictures, and one line here. The module is imported
when it is asked for, so that no source pays for another's libraries."""

from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from fluxsmith.data.derived import (
    CaptionFault,
    CheckedRecords,
    CheckedShards,
    JoinedRecords,
    JoinedShards,
    Part,
)
from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.records import DataSettings, Records, Shards, Split
from fluxsmith.errors import UserError

SOURCES = {
    "digits": "fluxsmith.data.digits",
    "mnist": "fluxsmith.data.mnist",
    "colored-digits": "fluxsmith.data.colored_digits",
    "emoji": "fluxsmith.data.emoji",
    "folder": "fluxsmith.data.folder",
    "hf": "fluxsmith.data.hf",
    "webdataset": "fluxsmith.data.webdataset",
}


def open_source(
    settings: DataSettings, split: Split, fault: CaptionFault | None = None
) -> ImageSet | Records | Shards:
    """A split of the source that the settings name: its pictures all in memory, to be read in any
    order, or in shards. `fault` says of a caption why it can't be used."""
    found = _open(settings, split)
    if fault is None or isinstance(found, ImageSet):
        return found
    if isinstance(found, Shards):
        return CheckedShards(found, fault)
    return CheckedRecords(found, fault)


def _open(settings: Any, split: Split) -> ImageSet | Records | Shards:
    load = import_module(SOURCES[settings.source]).load
    paths = getattr(settings, "path", None)
    if paths is None or isinstance(paths, str):
        found: ImageSet | Records | Shards = load(settings, split)
        return found
    if not paths:
        raise UserError("data.path: names nothing; name a folder, tar shards or a hub id")
    repeats = paths if isinstance(paths, Mapping) else Counter(paths)  # one named twice comes twice
    parts = [
        Part(
            load(settings.model_copy(update={"path": path}), split),
            times if split == "train" else 1,
            path,
        )
        for path, times in repeats.items()
    ]
    return JoinedShards(parts) if isinstance(parts[0].source, Shards) else JoinedRecords(parts)
