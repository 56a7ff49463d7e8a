"""The embedded digits are scikit-learn's, split in two, at 17 grey levels."""

import pytest
import torch
from sklearn.datasets import load_digits

from fluxsmith.data import DataSettings, digits, load
from fluxsmith.data.captions import DIGIT_CAPTIONS
from fluxsmith.data.digits import load as load_source
from fluxsmith.errors import UserError


@pytest.mark.parametrize(("split", "n"), [("train", 1415), ("test", 382)])
def test_a_split_holds_images_labels_and_captions(split, n):
    found = load_source(None, split)
    assert len(found) == n
    assert found.images.shape == (n, 1, 8, 8)
    assert found.images.dtype == torch.uint8
    assert found.labels.shape == (n,)
    assert set(found.labels.tolist()) == set(range(10))
    assert found.captions[3] == ("3", "three")


def test_both_splits_together_are_the_whole_set_exactly():
    train, test = load_source(None, "train"), load_source(None, "test")
    levels = torch.cat([train.images, test.images])[:, 0].double() * 16 / 255
    whole = load_digits()
    assert torch.equal(levels.round(), torch.from_numpy(whole.images))
    assert torch.cat([train.labels, test.labels]).tolist() == whole.target.tolist()


def test_no_image_is_in_both_splits():
    train, test = load_source(None, "train").images, load_source(None, "test").images
    seen = {image.numpy().tobytes() for image in train}
    assert seen.isdisjoint(image.numpy().tobytes() for image in test)


def test_white_is_255_and_black_is_0():
    images = load_source(None, "train").images
    assert (images.min(), images.max()) == (0, 255)


def test_every_caption_is_listed_once_in_the_order_of_labels():
    captions = load_source(None, "test").distinct_captions()
    assert captions == [text for ways in DIGIT_CAPTIONS for text in ways]
    assert len(set(captions)) == 20


def test_a_source_is_loaded_at_the_size_and_channels_asked_for():
    padded = load(DataSettings("digits", image_size=12, channels=3, resize="pad"), "test")
    assert padded.images.shape == (382, 3, 12, 12)
    raw = load_source(None, "test")
    assert torch.equal(padded.images[:, 1:2, 2:10, 2:10], raw.images)
    assert torch.equal(padded.labels, raw.labels)
    stretched = load(DataSettings("digits", image_size=16, resize="stretch"), "test")
    assert stretched.images.shape == (382, 1, 16, 16)


def test_a_path_is_a_mistake():
    with pytest.raises(UserError, match=r"data\.path=somewhere"):
        load_source("somewhere", "train")


def test_scikit_learn_without_its_file_is_told(monkeypatch):
    monkeypatch.setattr(digits, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install --force-reinstall scikit-learn"):
        load_source(None, "train")
