"""Teachers for students of a few steps of training."""

from pathlib import Path

import pytest
import torch
from helpers import randomise

from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.run import build_trainer


@pytest.fixture
def make_teacher(toy, tmp_path):
    """make_teacher(KEY=VALUE, ...) trains nothing: random weights, saved as a run of one step."""

    def make(*overrides: str, name: str = "teacher") -> Path:
        folder = tmp_path / name
        config = toy("train.steps=1", f"output_dir={folder}", f"name={name}", *overrides)
        trainer = build_trainer(config, torch.device("cpu"))
        randomise(trainer.pipeline)
        trainer.ema.load(trainer.pipeline.state_dict())
        folder.mkdir()
        checkpoints.save(folder / "diffusion-1.pt", trainer.state_dict())
        return folder

    return make


@pytest.fixture
def teacher(make_teacher) -> Path:
    return make_teacher()
