"""Runs with frozen text encoders: train, cache, resume, sample, and what stops them."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import randomise, same
from PIL import Image
from tiny_encoders import CLIP_WIDTH, save_clip, save_t5

from fluxsmith import Pipeline
from fluxsmith.cli import main
from fluxsmith.config import read_config
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.caption_encoding import padding as measure
from fluxsmith.training.recorder import read_metrics
from fluxsmith.training.run import build_trainer

CPU = torch.device("cpu")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in arguments])
    return int(exit_.value.code or 0)


def refused(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1, line
    return line


@pytest.fixture
def encoders(tmp_path) -> dict[str, Path]:
    return {"clip": save_clip(tmp_path / "clip"), "t5": save_t5(tmp_path / "t5")}


@pytest.fixture
def config_file(toy_file, tmp_path, encoders) -> Path:
    """The toy config with CLIP and T5 in place of bytes, as a file."""
    data = yaml.safe_load(toy_file.read_text())
    data["text"] = {"encoder": "clip_t5", "cache": str(tmp_path / "cache"), "t5_tokens": 16}
    data["text"] |= {name: str(folder) for name, folder in encoders.items()}
    data["device"] = "cpu"
    toy_file.write_text(yaml.safe_dump(data))
    return toy_file


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.slow
def test_it_trains_caches_resumes_and_samples(config_file, tmp_path, encoders, capsys):
    assert run("train", config_file) == 0
    printed = capsys.readouterr().out
    assert "21 prompts by" in printed
    assert "21 of them encoded now" in printed
    assert re.search(r"padding     trim: \d+\.\d% of the \d\.\d text tokens", printed)
    whole = checkpoints.load(tmp_path / "run" / "diffusion-6.pt")

    plan = ("train.steps=4", "train.schedule=constant")
    for folder, steps in (("alone", 6), ("parts", 3)):
        to = f"output_dir={tmp_path / folder}"
        assert run("train", config_file, *plan, f"train.steps={steps}", to) == 0
    again = ("train.steps=6", f"output_dir={tmp_path / 'parts'}", "--resume", "auto")
    capsys.readouterr()
    assert run("train", config_file, *plan, *again) == 0
    assert " 0 of them encoded now" in capsys.readouterr().out
    alone, parts = (
        checkpoints.load(tmp_path / folder / "diffusion-6.pt") for folder in ("alone", "parts")
    )
    for key in ("model", "ema", "optimizer", "window"):
        assert same(alone[key], parts[key]), key

    identity = whole["metadata"]["text"]
    assert identity.keys() == {"clip", "t5"}
    for name, folder in encoders.items():
        assert identity[name]["name"] == str(folder)
        assert re.fullmatch("[0-9a-f]{16}", identity[name]["digest"])
    assert {name.split(".")[0] for name in whole["model"]} == {"network"}
    assert {name.split(".")[0] for name in whole["ema"]} == {"network"}
    assert run("sample", tmp_path / "run", "--prompt", "seven", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "sample-6-seed0.png").is_file()


def test_neither_the_cache_nor_sampling_between_steps_changes_the_losses(config_file, tmp_path):
    """With the cache filled beforehand, in memory only, and on disk while training."""
    assert run("encode", config_file) == 0
    found = []
    for settings in (
        (), ("text.cache=memory",), (f"text.cache={tmp_path / 'new'}",),
        ("text.cache=memory", "train.sample_every=2"),
    ):  # fmt: skip
        folder = tmp_path / f"run-{len(found)}"
        to = (*settings, "train.log_every=1", f"output_dir={folder}")
        assert run("train", config_file, *to) == 0
        found.append(losses(folder))
    assert len(found[0]) == 6
    assert all(other == found[0] for other in found)


def test_encoding_beforehand_spares_training_the_encoders(config_file, tmp_path, encoders, capsys):
    own = "sample.prompts=['a prompt of its own']"
    assert run("encode", config_file, own) == 0
    assert "22 prompts by" in capsys.readouterr().out
    for folder in encoders.values():
        shutil.rmtree(folder)
    assert run("train", config_file, "evaluate.every=3", own) == 0
    assert " 0 of them encoded now" in capsys.readouterr().out
    assert run("sample", tmp_path / "run", "--prompt", "7", "--out", tmp_path) == 0
    line = refused(capsys, "sample", tmp_path / "run", "--prompt", "a new one", "--out", tmp_path)
    assert "text.clip=" in line
    assert "no such folder" in line


def test_nothing_of_the_encoders_is_trained_clipped_or_averaged(config_file):
    config = read_config(config_file)
    trainer = build_trainer(config, CPU)
    text = trainer.pipeline.text
    text.check(["three"])
    before = text(["three"])
    trainer.pipeline.train()
    for _ in range(2):
        trainer.train_step()
    assert torch.equal(text(["three"]).tokens, before.tokens)
    text.release()
    fresh = build_trainer(config, CPU).pipeline.text
    assert torch.equal(fresh(["three"]).tokens, before.tokens)
    assert not any(
        module.training for part in text.parts.values() for module in part.model.modules()
    )
    trained = {id(p) for group in trainer.optimiser.param_groups for p in group["params"]}
    assert trained == {id(p) for p in trainer.pipeline.network.parameters()}
    assert trainer.ema.weights.keys() == trainer.pipeline.state_dict().keys()


def test_other_weights_in_the_folder_are_an_error_and_their_place_can_be_told(
    config_file, tmp_path, encoders, capsys
):
    assert run("train", config_file, "train.steps=1") == 0
    moved = shutil.move(encoders["t5"], tmp_path / "moved")
    save_t5(encoders["t5"], seed=7)
    checkpoint = tmp_path / "run" / "diffusion-1.pt"
    options = ("--prompt", "a new prompt", "--out", tmp_path / "out")
    line = refused(capsys, "sample", checkpoint, *options)
    assert f"text.t5={encoders['t5']}: is not the encoder that {checkpoint} was trained" in line
    assert not (tmp_path / "out").exists()
    line = refused(capsys, "train", config_file, "train.steps=2", "--resume", "auto")
    assert "is not the encoder that" in line

    where = ("--set", f"text.t5={moved}")
    assert run("sample", checkpoint, *options, *where) == 0
    with Image.open(tmp_path / "out" / "sample-1-seed0.png") as picture:
        assert f"--set text.t5={moved}" in picture.text["command"]
    pipeline = Pipeline.from_checkpoint(checkpoint, "cpu", overrides=where[1:])
    assert pipeline.text(["never seen"]).pooled.shape == (1, CLIP_WIDTH)
    assert run("train", config_file, "train.steps=2", f"text.t5={moved}", "--resume", "auto") == 0
    line = refused(capsys, "sample", checkpoint, *options, "--set", "model.depth=2")
    assert "model.depth: a checkpoint's own setting" in line


def test_trimmed_and_masked_text_give_the_same_velocity(config_file):
    """Masked tokens have no influence, however many there are; padding attended to has."""
    x, t = torch.randn(3, 1, 16, 16), torch.tensor([0.2, 0.5, 0.8])
    prompts, found = ["3", "three seven", ""], {}
    for padding in ("trim", "mask", "full"):
        pipeline = Pipeline.build(read_config(config_file, [f"text.padding={padding}"]))
        randomise(pipeline)
        with torch.no_grad():
            found[padding] = pipeline.velocity(x, t, pipeline.encode_text(prompts))
    torch.testing.assert_close(found["trim"], found["mask"], atol=1e-5, rtol=0)
    assert (found["full"] - found["mask"]).abs().max() > 1e-3


def test_the_digest_of_a_model_knows_its_encoders_but_not_their_place(
    config_file, tmp_path, encoders
):
    def digest(*overrides: str) -> str:
        return Pipeline.build(read_config(config_file, overrides)).digest()

    moved = shutil.copytree(encoders["t5"], tmp_path / "moved")
    other = save_t5(tmp_path / "other", seed=5)
    assert digest() == digest(f"text.t5={moved}") == digest("text.cache=memory")
    assert digest() != digest(f"text.t5={other}")
    assert digest() != digest("text.padding=full")


@pytest.mark.parametrize("padding", ["trim", "mask", "full"])
def test_the_padding_line_is_what_the_batches_hold(config_file, padding):
    """Counted from the embeddings themselves; of the two, the compute is checked elsewhere."""
    pipeline = Pipeline.build(read_config(config_file, [f"text.padding={padding}"]))
    batches = [["3", "three", ""], ["4", "5", "6"]]
    fed = sum(pipeline.encode_text(batch).tokens[..., 0].numel() for batch in batches)
    found = measure(pipeline, pipeline.text, batches)
    real = sum(sum(pipeline.text.token_counts(batch)) for batch in batches)
    assert found.startswith(f"padding     {padding}: {1 - real / fed:.1%} of the {fed / 6:.1f} ")
    cost = float(re.search(r"costs ([\d.]+)%", found)[1]) / 100
    assert 0 < cost < 1 - real / fed
    if padding == "trim":
        even = measure(pipeline, pipeline.text, [["3", "4"]])
        assert "0.0% of the 3.0 text tokens" in even
        assert "costs 0.0%" in even


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (["text.width=768"], "text.width=768: text.encoder=clip_t5 has no width"),
        (["text.padding=left"], "text.padding='left'"),
        (["text.t5_tokens=0"], "text.t5_tokens=0"),
        (["text.clip_tokens=78"], "text.clip_tokens=78"),
        (["text.t5=/nowhere/t5"], "text.t5=/nowhere/t5: there is no such folder"),
        (["text.cache=/proc/no"], "can't write to /proc/no"),
    ],
)
def test_mistakes_are_one_line(config_file, capsys, settings, names):
    assert names in refused(capsys, "train", config_file, *settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_named_by_its_key(config_file, capsys):
    line = refused(capsys, "train", config_file, "text.t5_device=cuda")
    assert "text.t5_device" in line
    assert "not available here" in line


def test_encoding_what_is_learned_or_kept_nowhere_is_refused(config_file, toy_file, capsys):
    line = refused(capsys, "encode", config_file, "text.cache=memory")
    assert "text.cache=memory" in line
    plain = toy_file.with_name("plain.yaml")
    plain.write_text("data: {source: digits}\n")
    assert "text.encoder=bytes: is learned" in refused(capsys, "encode", plain)


def test_any_one_encoder_trains_and_needs_a_name(toy_file, tmp_path, encoders, capsys):
    data = yaml.safe_load(toy_file.read_text())
    data["text"] = {"encoder": "transformers", "max_tokens": 8, "cache": str(tmp_path / "cache")}
    toy_file.write_text(yaml.safe_dump(data))
    assert "text.pretrained: missing" in refused(capsys, "train", toy_file)
    assert run("train", toy_file, "train.steps=2", f"text.pretrained={encoders['t5']}") == 0
    checkpoint = checkpoints.load(tmp_path / "run" / "diffusion-2.pt")
    assert checkpoint["metadata"]["text"].keys() == {"pretrained"}
    about = json.loads(next((tmp_path / "cache").glob("*/about.json")).read_text())
    assert about["parts"]["pretrained"]["max_tokens"] == 8
