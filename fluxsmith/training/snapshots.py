"""The averaged weights of a run at many of its steps, for who watches it learn: small checkpoints
without training state, in a folder beside the others."""

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fluxsmith.config.train_section import TrainConfig
from fluxsmith.parallel.ranks import Ranks
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.files import make_folder

FOLDER = "snapshots"  # in a run's
REQUEST = "wanted"  # a file there asks for one at the next step


class Snapshots:
    """Keeps what `train.snapshots` asks for, on the first rank, where it has all of the model."""

    def __init__(self, run: Path, config: TrainConfig, ranks: Ranks, whole: bool) -> None:
        self.folder = run / FOLDER
        keeps = ranks.first and whole
        self.steps = snapshot_steps(config.steps, config.snapshots) if keeps else set()

    def keep(
        self,
        step: int,
        state: Callable[[], Mapping[str, Any]],
        claim: Callable[[], object] = lambda: None,
    ) -> None:
        """Writes the state of this step where it is one of those to keep, or is asked for; `claim`
        makes sure first that the folder is still the run's."""
        if not self.steps:
            return
        request = self.folder / REQUEST
        if step not in self.steps and not request.exists():
            return
        claim()
        make_folder(self.folder, "output_dir")
        small = checkpoints.without_training(state(), torch.bfloat16)
        checkpoints.save(checkpoints.checkpoint_path(self.folder, step), small)
        with contextlib.suppress(OSError):
            request.unlink()


def snapshot_steps(steps: int, n: int) -> set[int]:
    """About n steps from the first to the last, each the same factor after the one before."""
    if n < 2:
        return {steps} if n else set()
    return {round(math.exp(math.log(steps) * i / (n - 1))) for i in range(n)}
