"""What several test modules need."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxsmith.config.data_section import DataConfig
from fluxsmith.data.records import Split
from fluxsmith.data.sources import open_source

# A config small enough that a training step takes milliseconds.
TOY = """
data: {source: digits, image_size: 16, resize: stretch}
text: {width: 64, hidden_size: 64}
model: {patch_size: 4, hidden_size: 64, num_heads: 1, depth: 1, depth_single_blocks: 1}
train: {steps: 6, batch_size: 8, warmup_steps: 2, log_every: 2, learning_rate: 0.01}
sample: {steps: 3, num_samples: 4}
"""

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++")


def data_settings(source: str, path: object = None, **keys: Any) -> DataConfig:
    """The data section of a config, as loaders take it; no captions are dropped by default."""
    given = {} if path is None else {"path": str(path)}
    return DataConfig.model_validate({"source": source, "caption_dropout": 0.0, **given, **keys})


def open_data(source: str, path: object, split: Split, **keys: Any) -> Any:
    """What a source gives for these settings."""
    return open_source(data_settings(source, path, **keys), split)


def randomise(module: torch.nn.Module, scale: float = 0.1) -> torch.nn.Module:
    """Gives every parameter random values: a new network would predict 0 whatever its input."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            change = scale * torch.randn(parameter.shape, generator=draw)
            parameter.add_(change.to(parameter.device))
    return module


def assert_agree(ours: torch.Tensor, theirs: torch.Tensor, within: float) -> None:
    """Equal everywhere but for `within`. Says the largest difference, which `pytest -rP` shows."""
    largest = (ours - theirs).abs().max().item()
    print(f"largest difference {largest:.1e}, allowed {within:.0e}, deviation {theirs.std():.2g}")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=within)


def same(a: Any, b: Any) -> bool:
    """Whether two nested structures are equal, tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def without_times(record: dict[str, float]) -> dict[str, float]:
    """A record of a run without what depends on how fast it was."""
    return {k: v for k, v in record.items() if k not in ("images_per_second", "data_wait")}


@contextmanager
def held_by_a_process(folder: Path) -> Iterator[None]:
    """Inside, another process has the folder's lock, as a run in training does."""
    hold = "import sys; from pathlib import Path; from fluxsmith.training.lock import FolderLock\n"
    hold += "with FolderLock(Path(sys.argv[1])) as lock: lock.take(); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as training:
        assert training.stdout is not None
        training.stdout.readline()
        yield
        training.communicate(b"\n")
