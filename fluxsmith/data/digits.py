"""The 1,797 handwritten digits embedded in scikit-learn: 8x8, 17 grey levels, no download.

They are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998).
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fluxsmith.data.captions import DIGIT_CAPTIONS, DIGIT_CLASSES
from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.settings import Split
from fluxsmith.errors import UserError

TRAINING_IMAGES = 1415  # a new writer begins here; the rest, 382 images, is for testing


def load(path: str | None, split: Split) -> ImageSet:
    """Images (n, 1, 8, 8), white on black."""
    if path is not None:
        raise UserError(f"data.path={path}: the source digits needs no files; remove the key")
    rows = _rows()
    images = (rows[:, :64].view(-1, 1, 8, 8) / 16 * 255).round().to(torch.uint8)
    labels = rows[:, 64].long()
    part = slice(None, TRAINING_IMAGES) if split == "train" else slice(TRAINING_IMAGES, None)
    return ImageSet(images[part], labels[part], DIGIT_CAPTIONS, DIGIT_CLASSES)


def _rows() -> Tensor:
    """64 grey levels and the digit, (n, 65) bytes.

    Read from scikit-learn's file: importing it takes a second or two, with scipy and pandas.
    """
    package = find_spec("sklearn")
    folders = (package and package.submodule_search_locations) or []
    for folder in folders:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.uint8))
    raise UserError("the source digits lies in scikit-learn, which is not installed whole: "
                    "pip install --force-reinstall scikit-learn")  # fmt: skip
