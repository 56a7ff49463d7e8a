"""Checkpoints in folders: whole or not there, checked byte by byte, and nothing in them is run."""

import hashlib
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from helpers import assert_agree, same

from fluxsmith.cli import main
from fluxsmith.errors import UserError
from fluxsmith.interop.lora_files import read_lora
from fluxsmith.interop.read_weights import read_weights
from fluxsmith.pipeline import Pipeline
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage import sharded
from fluxsmith.storage.tensor_files import DamagedFileError
from fluxsmith.training.run import build_trainer, train
from fluxsmith.training.saving import Saver

SHARES = "train.checkpoint_format=sharded"


@pytest.fixture
def folder(toy, tmp_path) -> Path:
    """The checkpoint of a short run."""
    assert train(toy("train.steps=2", SHARES)) == 0
    return checkpoints.newest(tmp_path / "run")


def test_it_holds_what_a_file_holds(toy, tmp_path, folder):
    assert folder.name == "diffusion-2"
    file = f"output_dir={tmp_path / 'file'}"
    assert train(toy("train.steps=2", file)) == 0
    one, other = checkpoints.load(folder), checkpoints.load(tmp_path / "file" / "diffusion-2.pt")
    for key in ("format", "step", "images_seen", "model", "ema", "optimizer", "data", "window"):
        assert same(one[key], other[key]), key


def test_everything_reads_it(toy, tmp_path, folder):
    """Resuming, the pipeline, `sample` and `export`."""
    state = checkpoints.load(folder)
    pipeline = Pipeline.from_checkpoint(folder, device="cpu")
    assert same(dict(pipeline.state_dict()), state["ema"])
    for command in (
        ["sample", str(folder), "--prompt", "7", "--steps", "1", "--out", str(tmp_path / "drawn")],
        [
            "export",
            str(folder.parent),
            str(tmp_path / "e.safetensors"),
            "--format=bfl",
            "--no-samples",
        ],
    ):
        with pytest.raises(SystemExit) as end:
            main(command)
        assert not end.value.code
    assert train(toy("train.steps=3", SHARES), resume="auto") == 0
    assert checkpoints.newest(folder.parent).name == "diffusion-3"


def test_it_is_a_model_wherever_weights_are_taken(toy, tmp_path, folder):
    """Imported, as a start, and as the base of a LoRA run, which lies in a folder of its own: that
    one is drawn with, merged and found again between two models."""
    average = checkpoints.load(folder)["ema"]
    assert same(read_weights(folder.parent).tensors(), average)
    started = build_trainer(toy(f"train.init_from={folder}"), torch.device("cpu")).pipeline
    assert same(dict(started.state_dict()), average)
    run, out = tmp_path / "lora", tmp_path / "out.safetensors"
    adapter = "train.adapter={kind: lora, rank: 2}", "train.learning_rate=0.1"
    for base in (folder, folder.parent):
        lora = toy(SHARES, f"train.init_from={base}", f"output_dir={run}", *adapter)
        assert train(lora, overwrite=True) == 0
    for typed in (
        f"import {folder} {tmp_path / 'in.pt'}",
        f"lora merge {run} {out}",
        f"lora convert {run} {tmp_path / 'lora.safetensors'}",
        f"lora extract {folder} {out} {tmp_path / 'found.safetensors'} --rank 2",
        f"sample {folder} --lora {run} --prompt 7 --steps 1 --out {tmp_path / 'drawn'}",
    ):
        with pytest.raises(SystemExit) as end:
            main(typed.split())
        assert not end.value.code, typed
    assert same(checkpoints.load(tmp_path / "in.pt")["ema"], average)
    for file in ("lora", "found"):
        for change in read_lora(tmp_path / f"{file}.safetensors").changes:
            whole = read_weights(out).network[f"{change.layer}.weight"]
            before = average[f"network.{change.layer}.weight"]
            rows = slice(change.start, change.stop)
            assert_agree(whole[rows] - before[rows], change.change(), within=1e-4)
    with pytest.raises(UserError, match="is a whole model"):
        read_lora(folder)


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "plain.pt"])
def test_a_flipped_bit_is_found_and_the_folder_set_aside(toy, folder, name):
    spoilt = bytearray((folder / name).read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    (folder / name).write_bytes(spoilt)
    with pytest.raises(DamagedFileError, match="not as it was written"):
        checkpoints.load(folder)
    assert train(toy("train.steps=4", "train.checkpoint_every=1", SHARES), overwrite=True) == 0
    shutil.copy(folder.parent / "diffusion-3" / name, folder.parent / "diffusion-4" / name)
    if name == ".metadata":  # which says where things are, and not what they are
        (folder.parent / "diffusion-4" / name).write_bytes(spoilt)
    assert train(toy("train.steps=5", SHARES), resume="auto") == 0
    assert (folder.parent / "diffusion-4.damaged").is_dir()


def test_a_spoilt_manifest_and_a_missing_file_are_passed_over(toy, folder):
    shares, plan = folder.parent / "diffusion-3", ("train.keep_checkpoints=3", SHARES)
    assert train(toy("train.steps=4", "train.checkpoint_every=1", *plan), overwrite=True) == 0
    (folder.parent / "diffusion-4" / sharded.MANIFEST).write_text("", encoding="utf-8")
    with pytest.raises(DamagedFileError):
        checkpoints.load(folder.parent / "diffusion-4")
    (shares / "__0_0.distcp").unlink()
    with pytest.raises(DamagedFileError):
        checkpoints.load(shares)
    assert train(toy("train.steps=5", *plan), resume="auto") == 0
    assert checkpoints.load(folder.parent / "diffusion-5")["step"] == 5


def test_a_folder_without_a_manifest_is_no_checkpoint(folder):
    (folder / sharded.MANIFEST).unlink()
    assert checkpoints.find(folder.parent) == []
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoints.newest(folder.parent)


def test_what_is_left_of_a_deleted_one_gives_way(toy, folder):
    """As where a process was killed while it deleted."""
    left = folder.with_name("diffusion-3")
    left.mkdir()
    (left / "__0_0.distcp").write_bytes(b"a part")
    assert train(toy("train.steps=3", SHARES), resume="auto") == 0
    assert checkpoints.load(left)["step"] == 3


class Planted:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_code_in_the_description_is_refused(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (folder / ".metadata").write_bytes(pickle.dumps(Planted()))
    manifest = sharded.read_json(folder / sharded.MANIFEST)
    planted = (folder / ".metadata").read_bytes()
    manifest["sha256"][".metadata"] = hashlib.sha256(planted).hexdigest()
    (folder / sharded.MANIFEST).write_text(sharded.json.dumps(manifest))
    with pytest.raises(UserError, match="holds code"):
        checkpoints.load(folder)
    assert not Path("executed").exists()


@pytest.mark.parametrize("form", ["file", "sharded"])
def test_what_is_saved_in_the_background_is_the_state_when_it_was_saved(toy, tmp_path, form):
    """Not values of a later step."""
    config = toy(f"train.checkpoint_format={form}")
    trainer = build_trainer(config, torch.device("cpu"))
    trainer.train_step()
    before = {name: p.detach().clone() for name, p in trainer.pipeline.named_parameters()}
    (tmp_path / "run").mkdir()
    with Saver(tmp_path / "run", config.train, print) as saver:
        saver.save(trainer.state_dict())
        for p in trainer.pipeline.parameters():
            p.data.fill_(7.0)
        saver.finish()
    assert same(checkpoints.load(checkpoints.newest(tmp_path / "run"))["model"], before)
