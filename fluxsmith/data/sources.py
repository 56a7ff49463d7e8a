"""The sources by name. One is a module with a dataclass `Settings`, its keys in a config's data
section, and a function `load` from these to pictures, and one line here. The module is imported
when it is asked for, so that no source pays for another's libraries."""

from importlib import import_module

from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.records import DataSettings, Records, Shards, Split

SOURCES = {
    "digits": "fluxsmith.data.digits",
    "mnist": "fluxsmith.data.mnist",
    "colored-digits": "fluxsmith.data.colored_digits",
    "folder": "fluxsmith.data.folder",
    "hf": "fluxsmith.data.hf",
    "webdataset": "fluxsmith.data.webdataset",
}


def open_source(settings: DataSettings, split: Split) -> ImageSet | Records | Shards:
    """A split of the source that the settings name: its pictures all in memory, to be read in any
    order, or in shards."""
    found: ImageSet | Records | Shards
    found = import_module(SOURCES[settings.source]).load(settings, split)
    return found
