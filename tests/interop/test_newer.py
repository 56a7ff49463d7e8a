"""What a newer version of ours wrote says so, whoever reads it."""

import hashlib
import json

import pytest
import torch
from test_exporting import run_export, save_checkpoint

from fluxsmith import Pipeline
from fluxsmith.errors import UserError
from fluxsmith.interop.importing import import_model
from fluxsmith.interop.lora_files import read_lora
from fluxsmith.interop.read_weights import read_weights
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage import sharded
from fluxsmith.storage.files import read_json
from fluxsmith.storage.tensor_files import read_pickled
from fluxsmith.training.run import train

UNKNOWN = {
    "a section": {"dreams": {"depth": 3}},
    "a key": {"sample": {"dreaming": True}},
    "a kind": {"objective": {"kind": "dreaming"}},
    "a value": {"sample": {"guidance_method": "dreaming"}},
}


@pytest.fixture
def checkpoint(pipeline, tmp_path):
    return save_checkpoint(tmp_path / "diffusion-7.pt", pipeline)


def test_a_newer_format_says_upgrade(checkpoint, toy, tmp_path):
    state = checkpoints.load(checkpoint) | {"format": "fluxsmith/2"}
    torch.save(state, tmp_path / "newer.pt")
    for read in (
        checkpoints.load,
        read_weights,
        Pipeline.from_checkpoint,
        lambda path: train(toy(), resume=str(path)),
        lambda path: import_model(path, tmp_path / "in.pt"),
        read_lora,
    ):
        with pytest.raises(UserError, match=r"newer version of fluxsmith.*fluxsmith/2.*upgrade"):
            read(tmp_path / "newer.pt")


@pytest.mark.parametrize("what", ["format", "layout"])
def test_a_newer_folder_says_upgrade(toy, tmp_path, what):
    """Of the checkpoint itself, or of how it is laid out in files."""
    assert train(toy("train.steps=1", "train.checkpoint_format=sharded")) == 0
    folder = checkpoints.newest(tmp_path / "run")
    manifest = read_json(folder / sharded.MANIFEST)
    if what == "layout":
        manifest["layout"] = "fluxsmith-sharded/2"
    else:
        plain = read_pickled(folder / sharded.PLAIN) | {"format": "fluxsmith/2"}
        torch.save(plain, folder / sharded.PLAIN)
        digest = hashlib.sha256((folder / sharded.PLAIN).read_bytes()).hexdigest()
        manifest["sha256"][sharded.PLAIN] = digest
    (folder / sharded.MANIFEST).write_text(json.dumps(manifest))
    for read in (
        checkpoints.load,
        read_weights,
        read_lora,
        Pipeline.from_checkpoint,
        lambda path: train(toy(f"output_dir={tmp_path / 'new'}"), resume=str(path)),
        lambda path: import_model(path, tmp_path / "in.pt"),
    ):
        with pytest.raises(UserError, match=r"newer version of fluxsmith.*/2.*upgrade"):
            read(folder)


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_unknown_in_its_config_says_upgrade(checkpoint, toy, tmp_path, what):
    state = checkpoints.load(checkpoint)
    for section, keys in UNKNOWN[what].items():
        state["config"][section] = state["config"].get(section, {}) | keys
    checkpoints.save(tmp_path / "newer.pt", state)
    for read in (
        Pipeline.from_checkpoint,
        lambda path: train(toy(), resume=str(path)),
        lambda path: import_model(path, tmp_path / "in.pt"),
        lambda path: run_export(path, tmp_path / "out.safetensors"),
    ):
        with pytest.raises(UserError, match=r"newer version of fluxsmith\? then upgrade"):
            read(tmp_path / "newer.pt")
