"""Data sets: images as uint8 with the captions that describe them, from any source."""

from fluxsmith.data.loading import build_loader, load
from fluxsmith.data.sources import SOURCES

__all__ = ["SOURCES", "build_loader", "load"]
