"""The embedded digits are scikit-learn's, split in two, at 17 grey levels."""

import torch
from helpers import data_settings
from sklearn.datasets import load_digits

from fluxsmith.data import digits, load


def test_both_splits_together_are_the_whole_set_exactly():
    splits = [digits.load(None, split) for split in ("train", "test")]
    for found, n in zip(splits, (1415, 382), strict=True):
        assert found.images.shape == (n, 1, 8, 8)
        assert found.images.dtype == torch.uint8
        assert (found.images.min(), found.images.max()) == (0, 255)
        assert set(found.labels.tolist()) == set(range(10))
    levels = torch.cat([found.images for found in splits])[:, 0].double() * 16 / 255
    whole = load_digits()
    assert torch.equal(levels.round(), torch.from_numpy(whole.images))
    assert torch.cat([found.labels for found in splits]).tolist() == whole.target.tolist()
    seen = [{image.numpy().tobytes() for image in found.images} for found in splits]
    assert seen[0].isdisjoint(seen[1])


def test_a_source_is_loaded_at_the_size_and_channels_asked_for():
    padded = load(data_settings("digits", image_size=12, channels=3, resize="pad"), "test")
    assert padded.images.shape == (382, 3, 12, 12)
    raw = digits.load(None, "test")
    assert torch.equal(padded.images[:, 1:2, 2:10, 2:10], raw.images)
    assert torch.equal(padded.labels, raw.labels)
    stretched = load(data_settings("digits", image_size=16, resize="stretch"), "test")
    assert stretched.images.shape == (382, 1, 16, 16)
