"""What happens to a run while it goes on: functions called after its steps, and limits."""

import contextlib
import os
from collections.abc import Callable, Iterator
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
        return train(config, evaluate=after_each_step, **options)

    return run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@contextlib.contextmanager
def limited(kind: int, size: int) -> Iterator[None]:
    """A soft limit of this process, as `ulimit` sets it."""
    import resource

    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Root may write everywhere; inside, this process is nobody in particular."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
