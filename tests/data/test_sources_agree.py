"""The same images are the same tensors and captions, whichever way they are kept."""

from collections import Counter

import pytest
from helpers import data_settings
from made_pictures import as_folder, as_parquet, as_shards, items

from fluxsmith.config.data_section import DataConfig
from fluxsmith.data import build_loader, load

datasets = pytest.importorskip("datasets")
pytest.importorskip("webdataset")
N = 300


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> list[DataConfig]:
    """The settings of each way to keep them."""
    root = tmp_path_factory.mktemp("kept")
    made = items(N)
    parquet = str(as_parquet(root / "train.parquet", made, rows_a_group=300))
    paths = [
        ("folder", str(as_folder(root / "jsonl", made, "jsonl")), {}),
        ("folder", str(as_folder(root / "csv", made, "csv")), {}),
        ("folder", str(as_folder(root / "txt", made, "txt")), {}),
        ("hf", parquet, {}),
        ("hf", parquet, {"streaming": True, "shuffle_buffer": 64}),
        ("webdataset", as_shards(root / "shards", made, 7), {"shuffle_buffer": 64}),
    ]
    return [
        data_settings(
            source, path, image_size=8, channels=3, resize="center-crop", workers=1,
            test_share=0.0, **options,
        )
        for source, path, options in paths
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.getbasetemp() / "hf"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    datasets.disable_progress_bars()


def loaded(settings: DataConfig) -> Counter:
    data = load(settings, "train")
    return Counter(
        (image.numpy().tobytes(), data.captions[label])
        for image, label in zip(data.images, data.labels.tolist(), strict=True)
    )


def epoch(settings: DataConfig) -> Counter:
    """What an epoch of training batches holds."""
    loader = build_loader(settings, 50, seed=0)
    batches = [loader.batch(step) for step in range(N // 50)]
    return Counter(
        (image.numpy().tobytes(), caption)
        for batch in batches
        for image, caption in zip(batch.images, batch.captions, strict=True)
    )


def test_loaded_whole_they_are_equal(kept):
    first, *others = (loaded(settings) for settings in kept)
    assert len(first) == N
    assert all(other == first for other in others)


def test_in_an_epoch_of_batches_they_are_equal(kept):
    lazily = [
        settings.model_copy(update={"in_memory": False})
        for settings in kept
        if settings.source == "folder"
    ]
    first, *others = (epoch(settings) for settings in [*kept, *lazily])
    assert len(first) == N
    assert all(other == first for other in others)
