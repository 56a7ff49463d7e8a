"""CIFAR-10 in the Hugging Face layout, where it is at hand."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from fluxsmith.cli import main
from fluxsmith.config import read_config
from fluxsmith.data import load

datasets = pytest.importorskip("datasets")
SHARED = Path(os.environ.get("FLUXSMITH_DATA", "")) / "cifar10"
CONFIG = Path(__file__).parents[2] / "configs/image/cifar10/flux.yaml"
MADE = 200  # pictures in the folder

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="no $FLUXSMITH_DATA/cifar10")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The test images, as the shipped config finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
        datasets.disable_progress_bars()
        yield load(read_config(CONFIG).data.settings(), "test")


def test_the_config_finds_it_and_captions_its_classes(data):
    assert data.images.shape[1:] == (3, 32, 32)
    assert data.classes is not None
    assert data.classes.names[3] == "cat"
    assert "a photo of a cat" in data.captions[3]
    counts = data.class_labels.bincount()
    assert len(counts) == 10
    assert counts.min() == counts.max() == len(data) // 10


def test_a_folder_made_of_its_pictures_trains_with_the_same_command(data, tmp_path):
    """200 pictures with captions of their own in metadata.jsonl reach the model unchanged."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = []
    for i, image in enumerate(data.images[:MADE]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.png")
        name = data.classes.names[data.class_labels[i]]
        rows.append({"file_name": f"{i:03}.png", "text": f"my {name}, number {i}"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")

    mine = ["data.source=folder", f"data.path={folder}", "data.templates=null"]
    small = ["model.hidden_size=64", "model.num_heads=1", "train.steps=3", "train.batch_size=4"]
    settings = [*mine, *small, "sample.steps=2", "sample.num_samples=2", f"output_dir={tmp_path}/r"]
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(CONFIG), *settings])
    assert not stopped.value.code
    assert (tmp_path / "r" / "diffusion-3.pt").is_file()

    read = read_config(CONFIG, settings).data.settings()
    loaded = [load(read, split) for split in ("train", "test")]
    assert sum(map(len, loaded)) == MADE
    captions = [part.captions[label] for part in loaded for label in part.labels]
    number = [int(ways[0].rpartition(" ")[2]) for ways in captions]
    assert sorted(number) == list(range(MADE))
    assert torch.equal(torch.cat([part.images for part in loaded]), data.images[number])
