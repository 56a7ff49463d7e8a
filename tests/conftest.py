"""A config small enough that a training step takes milliseconds, on real data and real modules."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxsmith.config import RunConfig, read_config
from fluxsmith.pipeline import Pipeline

# Toy modules gain nothing from a second thread, and test processes would fight over the cores.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

TOY = """
data: {source: digits, image_size: 16, resize: stretch}
text: {width: 64, hidden_size: 64}
model: {patch_size: 4, hidden_size: 64, num_heads: 1, depth: 1, depth_single_blocks: 1}
train: {steps: 6, batch_size: 8, warmup_steps: 2, log_every: 2, learning_rate: 0.01}
sample: {steps: 3, num_samples: 4}
"""


@pytest.fixture
def toy_file(tmp_path: Path) -> Path:
    """The toy config as a file, whose runs go to tmp_path/run."""
    path = tmp_path / "toy.yaml"
    path.write_text(TOY + f"output_dir: {tmp_path / 'run'}\n", encoding="utf-8")
    return path


@pytest.fixture
def toy(toy_file: Path) -> Callable[..., RunConfig]:
    """toy("train.steps=3", ...) is the toy config with overrides."""
    return lambda *overrides: read_config(toy_file, overrides)


def randomise(module: torch.nn.Module, scale: float = 0.1) -> torch.nn.Module:
    """Gives every parameter random values: a new network would predict 0 whatever its input."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))
    return module


@pytest.fixture
def pipeline(toy: Callable[..., RunConfig]) -> Pipeline:
    """A pipeline with random weights, so that prompts, times and images all matter."""
    built = Pipeline.build(toy())
    randomise(built)
    return built.eval()


def same(a: Any, b: Any) -> bool:
    """Whether two nested structures are equal, tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
