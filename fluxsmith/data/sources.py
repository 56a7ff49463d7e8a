"""The sources by name. One is a function from its settings to pictures, and one line here; its
module is imported when it is asked for, so that no source pays for another's libraries."""

from importlib import import_module
from typing import Any, Protocol

from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.records import Records, Shards
from fluxsmith.data.settings import DataSettings, Split


class Source(Protocol):
    def __call__(
        self, path: str | None, split: Split, **options: Any
    ) -> ImageSet | Records | Shards:
        """The pictures as the source holds them: all in memory, to be read in any order, or in
        shards. `path` is the user's data.path, `options` what the source alone understands."""
        ...


SOURCES = {
    "digits": "fluxsmith.data.digits",
    "mnist": "fluxsmith.data.mnist",
    "colored-digits": "fluxsmith.data.colored_digits",
    "folder": "fluxsmith.data.folder",
    "hf": "fluxsmith.data.hf",
    "webdataset": "fluxsmith.data.webdataset",
}


def open_source(settings: DataSettings, split: Split) -> ImageSet | Records | Shards:
    """A split of the source that the settings name."""
    read: Source = import_module(SOURCES[settings.source]).load
    return read(settings.path, split, **settings.options)
