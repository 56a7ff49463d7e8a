"""A data set that fits in memory: images, labels and the captions of each label."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Images with several captions each; images of equal label share their captions."""

    images: Tensor  # (n, c, h, w) uint8
    labels: Tensor  # (n,) int64, on the CPU
    captions: Sequence[tuple[str, ...]]  # by label: the ways to say what is in the picture

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def with_images(self, images: Tensor) -> "ImageSet":
        return replace(self, images=images)

    def distinct_captions(self) -> list[str]:
        """Every caption once, in the order of labels."""
        return list(dict.fromkeys(text for ways in self.captions for text in ways))
