"""Checkpoints in folders: whole or not there, checked byte by byte, and nothing in them is run."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from helpers import same

from fluxsmith.cli import main
from fluxsmith.errors import UserError
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


def test_a_folder_without_a_manifest_is_no_checkpoint(folder):
    (folder / sharded.MANIFEST).unlink()
    assert checkpoints.find(folder.parent) == []
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoints.newest(folder.parent)


class Planted:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_code_in_the_description_is_refused(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (folder / ".metadata").write_bytes(pickle.dumps(Planted()))
    manifest = sharded.read_json(folder / sharded.MANIFEST)
    manifest["sha256"][".metadata"] = sharded._digest(folder / ".metadata")
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
