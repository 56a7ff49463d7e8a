"""The 1,797 handwritten digits embedded in scikit-learn: 8x8, 17 grey levels, no download.

They are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998).
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fluxsmith.data.captions import DIGIT_CAPTIONS, DIGIT_CLASSES
from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.records import Split

TRAINING_IMAGES = 1415  # a new writer begins here; the rest, 382 images, is for testing


def load(settings: Any, split: Split) -> ImageSet:
    """Images (n, 1, 8, 8), white on black; there is nothing to set."""
    package = find_spec("sklearn")  # importing it takes a second or two, with scipy and pandas
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.uint8))  # (n, 64 + the digit)
    images = (rows[:, :64].view(-1, 1, 8, 8) / 16 * 255).round().to(torch.uint8)
    labels = rows[:, 64].long()
    part = slice(None, TRAINING_IMAGES) if split == "train" else slice(TRAINING_IMAGES, None)
    return ImageSet(images[part], labels[part], DIGIT_CAPTIONS, DIGIT_CLASSES)
