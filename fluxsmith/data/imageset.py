"""A data set that fits in memory: images, labels, the captions of each label, and classes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Classes:
    """What a classifier can tell apart in the pictures; several labels may be of one class."""

    names: tuple[str, ...]
    of_label: Tensor  # (labels,) int64: the class of each label

    @classmethod
    def one_a_label(cls, names: Sequence[str]) -> "Classes":
        return cls(tuple(names), torch.arange(len(names)))


@dataclass(frozen=True)
class ImageSet:
    """Images with several captions each; images of equal label share their captions."""

    images: Tensor  # (n, c, h, w) uint8
    labels: Tensor  # (n,) int64, on the CPU
    captions: Sequence[tuple[str, ...]]  # by label: the ways to say what is in the picture
    classes: Classes | None = None  # None where captions are free text

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_labels(self) -> Tensor:
        """The class of each image, (n,)."""
        if self.classes is None:
            raise ValueError("these images have no classes")
        return self.classes.of_label[self.labels]

    def with_images(self, images: Tensor) -> "ImageSet":
        return replace(self, images=images)

    def distinct_captions(self) -> list[str]:
        """Every caption once, in the order of labels."""
        return distinct(self.captions)


def distinct(captions: Iterable[tuple[str, ...]]) -> list[str]:
    """Every caption once, in order of appearance."""
    return list(dict.fromkeys(text for ways in captions for text in ways))
