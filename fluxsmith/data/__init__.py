"""Data sets: images as uint8 with the captions that describe them.

A source is one function from its settings to an `ImageSet`, and one line in `SOURCES`. Source
modules are imported when they are asked for, so that no source pays for another's libraries.
"""

from importlib import import_module
from typing import Protocol

from fluxsmith.data.images import Split, fit
from fluxsmith.data.imageset import ImageSet


class Source(Protocol):
    def __call__(self, path: str | None, split: Split) -> ImageSet:
        """The images as the source holds them; `path` is the user's data.path."""
        ...


SOURCES = {"digits": "fluxsmith.data.digits", "mnist": "fluxsmith.data.mnist"}


def load(
    source: str, path: str | None, split: Split, *, image_size: int, channels: int, resize: str
) -> ImageSet:
    """The images of a source's split as the model sees them: (n, channels, size, size) uint8."""
    read: Source = import_module(SOURCES[source]).load
    raw = read(path, split)
    return raw.with_images(fit(raw.images, image_size, channels, resize))
