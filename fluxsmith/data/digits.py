"""The 1,797 handwritten digits embedded in scikit-learn: 8x8, 17 grey levels, no download.

They are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998).
"""

import torch

from fluxsmith.data.captions import DIGIT_CAPTIONS, DIGIT_CLASSES
from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.settings import Split
from fluxsmith.errors import UserError

TRAINING_IMAGES = 1415  # a new writer begins here; the rest, 382 images, is for testing


def load(path: str | None, split: Split) -> ImageSet:
    """Images (n, 1, 8, 8), white on black."""
    if path is not None:
        raise UserError(f"data.path={path}: the source digits needs no files; remove the key")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images / 16 * 255).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target).long()
    part = slice(None, TRAINING_IMAGES) if split == "train" else slice(TRAINING_IMAGES, None)
    return ImageSet(images[part], labels[part], DIGIT_CAPTIONS, DIGIT_CLASSES)
