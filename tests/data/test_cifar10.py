"""CIFAR-10 in the Hugging Face layout, where it is at hand."""

import os
from pathlib import Path

import pytest

from fluxsmith.config import read_config
from fluxsmith.data import load

datasets = pytest.importorskip("datasets")
SHARED = Path(os.environ.get("FLUXSMITH_DATA", "")) / "cifar10"
CONFIG = Path(__file__).parents[2] / "configs/image/cifar10/flux.yaml"

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="no $FLUXSMITH_DATA/cifar10")


def test_the_config_finds_it_and_captions_its_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    datasets.disable_progress_bars()
    data = load(read_config(CONFIG).data, "test")
    assert data.images.shape[1:] == (3, 32, 32)
    assert data.classes is not None
    assert data.classes.names[3] == "cat"
    assert "a photo of a cat" in data.captions[3]
    counts = data.class_labels.bincount()
    assert len(counts) == 10
    assert counts.min() == counts.max() == len(data) // 10
