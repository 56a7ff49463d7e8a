"""A data set that fits in memory: images, labels, the captions of each label, and classes."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Classes:
    """The classes of a classifier of the pictures; several labels may have one class."""

    names: tuple[str, ...]
    of_label: Tensor  # (labels,) int64: the class of each label


@dataclass(frozen=True)
class ImageSet:
    """Images with several captions each; images of equal label share their captions."""

    images: Tensor  # (n, c, h, w) uint8
    labels: Tensor  # (n,) int64, on the CPU
    captions: Sequence[tuple[str, ...]]  # by label
    classes: Classes | None = None  # None where captions are free text
    references: Tensor | None = None  # (n, c, h, w) uint8: what edits begin with, in sets of pairs

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the images, in pixels."""
        height, width = self.images.shape[-2:]
        return height, width

    @property
    def pairs(self) -> Tensor:
        """Images and, where there are some, their references in further channels."""
        if self.references is None:
            return self.images
        return torch.cat((self.images, self.references), dim=1)

    @property
    def class_labels(self) -> Tensor:
        """The class of each image, (n,)."""
        assert self.classes is not None
        return self.classes.of_label[self.labels]

    def digest(self) -> str:
        """Equal where the data is the same."""
        found = hashlib.sha256(json.dumps([list(self.images.shape), self.captions]).encode())
        for part in (self.labels, self.images):
            found.update(part.reshape(-1).numpy().data)
        return found.hexdigest()[:16]

    def distinct_captions(self) -> list[str]:
        """Every caption once, in the order of labels."""
        return distinct(self.captions)


def evenly(items: Sequence[T], n: int) -> list[T]:
    """n of the items, evenly spread; all in turn, again and again, where they are fewer."""
    there = len(items)
    return [items[i * there // n] if n < there else items[i % there] for i in range(n)]


def distinct(captions: Iterable[tuple[str, ...]]) -> list[str]:
    """Every caption once, in order of appearance."""
    return list(dict.fromkeys(text for ways in captions for text in ways))
