"""What a newer version of ours wrote says so, whoever reads it."""

import pytest
import torch
from test_exporting import run_export, save_checkpoint

from fluxsmith import Pipeline
from fluxsmith.errors import UserError
from fluxsmith.interop.importing import import_model
from fluxsmith.interop.read_weights import read_weights
from fluxsmith.storage import checkpoint as checkpoints
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
    ):
        with pytest.raises(UserError, match=r"newer version of fluxsmith.*fluxsmith/2.*upgrade"):
            read(tmp_path / "newer.pt")


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
