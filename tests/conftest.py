"""A config small enough that a training step takes milliseconds, on real data and real modules."""

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import TOY, needs_gpu, randomise
from hypothesis import HealthCheck, settings

from fluxsmith import Pipeline
from fluxsmith.config import RunConfig, read_config

# Toy modules gain nothing from a second thread, and test processes would fight over the cores.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA first multiplies

# No test fails because the machine is slow.
slow_machine = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("house", deadline=None, suppress_health_check=slow_machine)
settings.load_profile("house")

# What the tests compile and download stays out of the user's caches, and is shared by the workers
# of pytest-xdist, which find the folder in their environment.
MAKES_CACHE = "PYTEST_XDIST_WORKER" not in os.environ
if MAKES_CACHE:
    os.environ["FLUXSMITH_CACHE"] = tempfile.mkdtemp(prefix="fluxsmith-tests-")


# Files run in another order each time, so that none comes to need what another did before; the
# workers of pytest-xdist find the seed in their environment.
ORDER = os.environ.setdefault("FLUXSMITH_TEST_ORDER", str(random.randrange(10**6)))


def pytest_report_header() -> str:
    return f"files in the order of FLUXSMITH_TEST_ORDER={ORDER}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    files = sorted({item.path for item in items})
    places = dict(
        zip(files, random.Random(ORDER).sample(range(len(files)), len(files)), strict=True)
    )
    items.sort(key=lambda item: places[item.path])


def pytest_unconfigure() -> None:
    if MAKES_CACHE:
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
