"""What happens to a run while it goes on: functions called after its steps."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fluxsmith.config import RunConfig
from fluxsmith.training.run import train

Happenings = dict[int, Callable[[], object]]


@pytest.fixture
def eventful(toy: Callable[..., RunConfig]) -> Callable[..., int]:
    """eventful({3: f}, "train.steps=6", ...) trains, calls f after step 3, gives the exit code."""

    def run(happenings: Happenings, *overrides: str, **options: object) -> int:
        step = 0

        def after_each_step(pipeline: object) -> dict[str, float]:
            nonlocal step
            step += 1
            happenings.get(step, lambda: None)()
            return {}

        config = toy("evaluate.every=1", "train.log_every=1", *overrides)
        return train(config, evaluate=lambda: after_each_step, **options)

    return run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "run"
