"""Training from pictures on disk: resumed runs are the run, and faults are one line."""

from pathlib import Path

import pytest
from helpers import same
from made_pictures import as_classes, as_folder, as_parquet, as_shards, items, replace

from fluxsmith.cli import main
from fluxsmith.errors import UserError
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.recorder import read_metrics
from fluxsmith.training.run import train

MADE = items(40, size=16)


def records_of(config) -> list[dict[str, float]]:
    return read_metrics(Path(config.resolved_output_dir) / "metrics.jsonl")


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
    made = [*MADE, (MADE[0][0], "so " * 99 + "long"), (MADE[1][0], "\ud800 half")]
    path = f"data.path={as_shards(tmp_path / 'b', made, 1, caption='json')}"
    plan = ("data.source=webdataset", path, "data.test_share=0", "data.shuffle_buffer=100",
            "train.steps=12", "train.batch_size=7")  # fmt: skip
    state = trained(toy(*plan))
    assert caplog.text.count("its caption makes 100 tokens and the text encoder takes 64") == 1
    assert not any("so so" in caption for caption in state["metadata"]["captions"])
    assert any("half" in caption for caption in state["metadata"]["captions"])
    with pytest.raises(UserError, match=r"more than data\.max_bad=0 allows; .* makes 100 tokens"):
        train(toy(*plan, "data.max_bad=0"), overwrite=True)


@pytest.mark.parametrize("memory", [True, False])
def test_a_caption_that_is_too_long_is_counted_or_cut(toy, tmp_path, memory, caplog, capsys):
    as_folder(tmp_path / "a", [*MADE[:7], (MADE[7][0], "so " * 99 + "long")])
    plan = ("data.source=folder", f"data.path={tmp_path / 'a'}", "data.test_share=0",
            "evaluate.every=0", "train.steps=2", f"data.in_memory={memory}")  # fmt: skip
    with pytest.raises(UserError, match=r"the first is 00007\.png: its caption makes 100 tokens"):
        train(toy(*plan))
    state = trained(toy(*plan, "data.max_bad=0.5"), overwrite=True)
    assert len(state["metadata"]["captions"]) == 7
    assert "skipped 00007.png" in caplog.text
    assert train(toy(*plan, "text.too_long=cut"), overwrite=True) == 0
    assert "1 prompts are cut at 64 tokens; the longest makes 100" in capsys.readouterr().out


def test_free_captions_train_with_a_validation_loss_and_without_a_classifier(toy, tmp_path):
    from fluxsmith.evaluation.measurement import during_training

    as_folder(tmp_path / "a", MADE)
    data = ["data.source=folder", f"data.path={tmp_path / 'a'}", "evaluate.every=3",
            "data.test_share=0.2"]  # fmt: skip
    config = toy(*data)
    assert train(config, evaluate=lambda: during_training(config)) == 0
    assert any("validation_loss/ema" in record for record in records_of(config))
    with pytest.raises(UserError, match="free text, and a classifier needs classes"):
        during_training(toy(*data, "evaluate.metrics=[prompt_accuracy]"))


def test_a_classifier_learns_classes_in_folders(toy, tmp_path, monkeypatch):
    from fluxsmith.evaluation import classifier
    from fluxsmith.evaluation.measurement import during_training

    monkeypatch.setenv("FLUXSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classifier, "UPDATES", (3, 3))  # it need not be a good one
    as_classes(tmp_path / "a", MADE, ["x", "y"])
    config = toy("data.source=folder", f"data.path={tmp_path / 'a'}", "evaluate.every=6",
                 "evaluate.metrics=[prompt_accuracy]", "evaluate.num_samples=4",
                 "data.test_share=0.2")  # fmt: skip
    assert train(config, evaluate=lambda: during_training(config)) == 0
    assert any("prompt_accuracy/ema" in record for record in records_of(config))


def test_a_run_past_max_bad_ends_before_it_writes(toy, tmp_path):
    as_folder(tmp_path / "a", MADE)
    for i in range(5):
        (tmp_path / "a" / f"0000{i}.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"images can't be used, more than data\.max_bad=0\.01"):
        train(toy("data.source=folder", f"data.path={tmp_path / 'a'}"))
    assert not (tmp_path / "run").exists()


def test_other_pictures_and_more_of_them_are_refused_with_a_way_on(toy, tmp_path):
    folder = as_folder(tmp_path / "a", MADE)
    plan = ("data.source=folder", f"data.path={folder}", "evaluate.every=0")
    trained(toy(*plan, "train.steps=2"))
    moved = folder.rename(tmp_path / "b")  # where they lie doesn't matter
    plan = (plan[0], f"data.path={moved}", plan[2])
    trained(toy(*plan, "train.steps=3"), resume="auto")
    as_folder(moved, [(png, f"drawing {i}") for i, (png, _) in enumerate(MADE)])
    with pytest.raises(UserError, match=r"other names, captions or .*--fork .*diffusion-3\.pt"):
        train(toy(*plan, "train.steps=4"), resume="auto")
    as_folder(moved, MADE)
    replace(moved / "00001.png")
    with pytest.raises(UserError, match=r"other names, captions or contents"):
        train(toy(*plan, "train.steps=4"), resume="auto")
    as_folder(moved, [*MADE, *MADE])
    with pytest.raises(UserError, match=r"images, and there are \d+ now; .*--fork"):
        train(toy(*plan, "train.steps=4"), resume="auto")


def test_a_set_without_test_images_trains_and_says_what_is_left_out(toy, tmp_path, caplog):
    from fluxsmith.evaluation.measurement import during_training

    as_folder(tmp_path / "a", MADE[:1])
    config = toy("data.source=folder", f"data.path={tmp_path / 'a'}", "evaluate.every=1")
    assert during_training(config) is None
    assert "validation_loss is left out: it needs 2 test images, and there are 0" in caplog.text
    assert train(config) == 0


def test_a_model_without_prompts_trains_and_draws(toy, tmp_path, capsys):
    """Of loose images, and of one caption for all; nothing but the null prompt is asked for."""
    place = f"data.path={as_folder(tmp_path / 'loose', MADE, 'none')}"
    assert train(toy("data.source=folder", place, "data.captions=none", "train.steps=2")) == 0
    held = checkpoints.load(tmp_path / "run" / "diffusion-2.pt")
    assert held["metadata"]["captions"] == [""]
    with pytest.raises(SystemExit) as ended:
        main(["sample", str(tmp_path / "run"), "--prompt", "", "--steps", "2",
              "--out", str(tmp_path / "drawn")])  # fmt: skip
    assert not ended.value.code, capsys.readouterr().err
    assert next((tmp_path / "drawn").glob("**/*.png"))


def test_a_model_of_one_image_is_measured_as_far_as_it_can_be(toy, tmp_path, capsys):
    """And looked at: its pictures have no variance, so no loss is a share of the best one."""
    place = f"data.path={as_folder(tmp_path / 'one', MADE[:1])}"
    plan = "train={steps: 100, batch_size: 2, checkpoint_every: 100, sample_every: 0}"
    assert train(toy("data.source=folder", place, plan)) == 0
    record = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert "learned" in record and "relative_loss_q1" not in record
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(tmp_path / "run"), "--num-samples", "2"])
    assert not ended.value.code
    assert "left out" in capsys.readouterr().out
