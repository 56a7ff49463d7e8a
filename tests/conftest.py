"""A config small enough that a training step takes milliseconds, on real data and real modules."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import needs_gpu, randomise

from fluxsmith.config import RunConfig, read_config
from fluxsmith.pipeline import Pipeline

# Toy modules gain nothing from a second thread, and test processes would fight over the cores.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# What the tests compile and download stays out of the user's caches.
os.environ["FLUXSMITH_CACHE"] = tempfile.mkdtemp(prefix="fluxsmith-tests-")

TOY = """
data: {source: digits, image_size: 16, resize: stretch}
text: {width: 64, hidden_size: 64}
model: {patch_size: 4, hidden_size: 64, num_heads: 1, depth: 1, depth_single_blocks: 1}
train: {steps: 6, batch_size: 8, warmup_steps: 2, log_every: 2, learning_rate: 0.01}
sample: {steps: 3, num_samples: 4}
"""


@pytest.fixture(scope="session", autouse=True)
def caches() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["FLUXSMITH_CACHE"], ignore_errors=True)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


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


@pytest.fixture
def pipeline(toy: Callable[..., RunConfig]) -> Pipeline:
    """A pipeline with random weights, so that prompts, times and images all matter."""
    built = Pipeline.build(toy())
    randomise(built)
    return built.eval()
