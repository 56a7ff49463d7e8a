"""Training from pictures on disk: resumed runs are the run, and faults are one line."""

from pathlib import Path

import pytest
from helpers import same
from made_pictures import as_classes, as_folder, as_parquet, as_shards, items

from fluxsmith.errors import UserError
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.run import train

MADE = items(40, size=16)


def sources(root: Path) -> dict[str, list[str]]:
    """The overrides that train on each."""
    pytest.importorskip("datasets")
    pytest.importorskip("webdataset")
    return {
        "memory": ["data.source=folder", f"data.path={as_folder(root / 'a', MADE)}"],
        "workers": [
            "data.source=folder", f"data.path={root / 'a'}", "data.resize=random-crop",
            "data.flip=true",
        ],
        "webdataset": [
            "data.source=webdataset", f"data.path={as_shards(root / 'b', MADE, 3)}",
            "data.shuffle_buffer=5", "data.flip=true",
        ],
        "streaming": [
            "data.source=hf", f"data.path={as_parquet(root / 'c' / 'train.parquet', MADE)}",
            "data.streaming=true", "data.shuffle_buffer=7",
        ],
    }  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    datasets = pytest.importorskip("datasets")
    cache = tmp_path_factory.getbasetemp() / "hf"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    datasets.disable_progress_bars()


def trained(config, **options):
    assert train(config, **options) == 0
    return checkpoints.load(checkpoints.newest(Path(config.output_dir)))


@pytest.mark.parametrize("kind", ["memory", "workers", "webdataset", "streaming"])
def test_a_resumed_run_is_the_run_to_the_bit(toy, tmp_path, kind):
    overrides = [*sources(tmp_path)[kind], "train.steps=9", "train.checkpoint_every=1"]
    overrides += ["train.keep_checkpoints=0", "train.batch_size=7"]
    whole = trained(toy(*overrides))
    for step in range(5, 10):  # in the first epoch, behind it, and in the middle of a block
        checkpoints.checkpoint_path(tmp_path / "run", step).unlink()
    resumed = trained(toy(*overrides), resume="auto")
    for key in ("step", "model", "ema", "optimizer", "data"):
        assert same(whole[key], resumed[key]), key


def test_a_caption_that_is_too_long_ends_no_stream(toy, tmp_path, caplog):
    """Nobody has read all captions of a stream; in a folder they are read before the first step."""
    made = [*MADE, (MADE[0][0], "so " * 99 + "long"), (MADE[1][0], "\ud800 half")]
    path = f"data.path={as_shards(tmp_path / 'b', made, 1, caption='json')}"
    plan = ("data.source=webdataset", path, "data.test_share=0", "data.shuffle_buffer=100",
            "train.steps=12", "train.batch_size=7")  # fmt: skip
    state = trained(toy(*plan))
    assert caplog.text.count("makes 100 tokens; this encoder takes 64 tokens") == 1
    assert not any("so so" in caption for caption in state["metadata"]["captions"])
    assert any("half" in caption for caption in state["metadata"]["captions"])
    with pytest.raises(UserError, match=r"more than data\.max_bad=0 allows; .* makes 100 tokens"):
        train(toy(*plan, "data.max_bad=0"), overwrite=True)


def test_free_captions_train_with_a_validation_loss_and_without_a_classifier(toy, tmp_path):
    from fluxsmith.evaluation.measurement import during_training

    as_folder(tmp_path / "a", MADE)
    data = ["data.source=folder", f"data.path={tmp_path / 'a'}", "evaluate.every=3"]
    config = toy(*data)
    assert train(config, evaluate=during_training(config)) == 0
    with pytest.raises(UserError, match="free text, and a classifier needs classes"):
        during_training(toy(*data, "evaluate.metrics=[prompt_accuracy]"))


def test_a_classifier_learns_classes_in_folders(toy, tmp_path, monkeypatch):
    from fluxsmith.evaluation import classifier
    from fluxsmith.evaluation.measurement import during_training

    monkeypatch.setenv("FLUXSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classifier, "UPDATES", (3, 3))  # it need not be a good one
    as_classes(tmp_path / "a", MADE, ["x", "y"])
    config = toy("data.source=folder", f"data.path={tmp_path / 'a'}", "evaluate.every=6",
                 "evaluate.metrics=[prompt_accuracy]", "evaluate.num_samples=4")  # fmt: skip
    assert train(config, evaluate=during_training(config)) == 0


def test_a_run_past_max_bad_ends_before_it_writes(toy, tmp_path):
    as_folder(tmp_path / "a", MADE)
    for i in range(5):
        (tmp_path / "a" / f"0000{i}.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"images can't be used, more than data\.max_bad=0\.01"):
        train(toy("data.source=folder", f"data.path={tmp_path / 'a'}"))
    assert not (tmp_path / "run").exists()
