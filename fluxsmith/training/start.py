"""Where a run starts: from scratch, from a checkpoint it resumes, or from one that it forks."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fluxsmith import checkpoint as checkpoints
from fluxsmith.config import RunConfig
from fluxsmith.config.comparing import COURSE, WEIGHTS, check_same
from fluxsmith.config.reading import build_config
from fluxsmith.errors import UserError
from fluxsmith.model import libraries
from fluxsmith.training.trainer import Trainer


@dataclass(frozen=True)
class Start:
    """The checkpoint, if any, and the damaged ones that were passed over on the way to it."""

    path: Path | None = None
    contents: dict[str, Any] = field(default_factory=dict)
    resumes: bool = False  # or forks, where there is a path
    damaged: tuple[Path, ...] = ()
    # What the checkpoint was computed with, if it says so.
    threads: int | None = None
    products: str | None = None
    products_here: str | None = None

    def load_into(self, trainer: Trainer) -> "Start":
        """Returns itself without the contents: while they are mapped, the file takes up the disk
        even after it was deleted."""
        if self.path is None:
            return self
        if self.resumes:
            trainer.load_state_dict(self.contents, str(self.path))
        else:
            trainer.fork(self.contents, str(self.path))
        told = self.contents["metadata"]
        return replace(
            self,
            contents={},
            threads=told.get("threads"),
            products=told.get("products"),
            products_here=libraries.computing(trainer.pipeline.device),
        )

    def warnings(self) -> list[str]:
        """Why the last bits may not be those of the run left alone."""
        if not self.resumes:
            return []
        found = []
        then, now = self.threads, torch.get_num_threads()
        if then not in (None, now):
            found.append(
                f"{self.path} was computed with {then} threads, and here are {now}: on a CPU, sums "
                f"may differ in their last bits (OMP_NUM_THREADS={then} makes them equal)"
            )
        if self.products not in (None, self.products_here):
            found.append(
                f"{self.path} was computed by {self.products}, and here it is "
                f"{self.products_here}: on a CPU, the last bits may differ"
            )
        return found

    def __str__(self) -> str:
        if self.path is None:
            return "from scratch"
        return f"from {self.path}" if self.resumes else f"a new run from the weights of {self.path}"


def find_start(
    folder: Path, config: RunConfig, resume: str | None, overwrite: bool, fork: Path | None
) -> Start:
    """Where a run with these options starts; a UserError rather than writing over a run."""
    if resume is not None and overwrite:
        raise UserError("--resume and --overwrite contradict each other; give one of them")
    if fork is not None and config.train.init_from is not None:
        raise UserError("--fork and train.init_from contradict each other; give one of them")
    if resume not in (None, "auto") and fork is not None:
        raise UserError("--resume PATH and --fork contradict each other; give one of them")
    if resume == "auto":
        start = _newest_good(folder)
    elif resume is not None:
        path = checkpoints.newest(Path(resume))
        start = Start(path, checkpoints.load(path), resumes=True)
    else:
        if not overwrite:
            refuse_to_write_over(folder)
        start = Start()
    if start.path is not None:
        _check_resumable(folder, config, start)
    elif fork is not None:
        path = checkpoints.newest(fork)
        start = Start(path, checkpoints.load(path), damaged=start.damaged)
        _check_weights(config, start)
    return start


def refuse_to_write_over(folder: Path) -> None:
    there = checkpoints.find(folder)
    if there:
        raise UserError(
            f"{folder} already holds a run, at step {there[-1][0]}; add --resume auto to continue "
            f"it, --overwrite to start again, or output_dir=... to leave it alone"
        )


def _newest_good(folder: Path) -> Start:
    """The newest checkpoint of a run that is as it was written, if it has any checkpoint."""
    damaged: list[Path] = []
    for _, path in reversed(checkpoints.find(folder)):
        try:
            return Start(path, checkpoints.load(path), resumes=True, damaged=tuple(damaged))
        except checkpoints.DamagedCheckpointError as error:
            damaged.append(path)
            last = error
    if damaged:
        raise UserError(
            f"{folder} has no good checkpoint to resume: {last}; add --overwrite to start again"
        )
    return Start()


def _check_resumable(folder: Path, config: RunConfig, start: Start) -> None:
    before = build_config(start.contents["config"], origin=str(start.path))
    check_same(before, config, COURSE, str(start.path))
    later = [
        step
        for step, path in checkpoints.find(folder)
        if step > start.contents["step"] and path not in start.damaged
    ]
    if later:
        raise UserError(
            f"{folder} holds a checkpoint of step {later[-1]}, later than {start.path}; set "
            f"output_dir to another folder, or move the later ones away"
        )


def _check_weights(config: RunConfig, start: Start) -> None:
    before = build_config(start.contents["config"], origin=str(start.path))
    check_same(before, config, WEIGHTS, str(start.path))
