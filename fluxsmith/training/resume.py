"""Where a run starts: from scratch, from a checkpoint to resume, or from one to fork."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fluxsmith.config import RunConfig
from fluxsmith.config.comparing import COURSE, WEIGHTS, check_same
from fluxsmith.config.reading import build_config
from fluxsmith.errors import UserError
from fluxsmith.kernels.accelerate import backend
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage import sharded
from fluxsmith.storage.tensor_files import DamagedFileError
from fluxsmith.training.trainer import Trainer


@dataclass(frozen=True)
class Start:
    """The checkpoint, if any, and the damaged ones that were skipped on the way to it."""

    path: Path | None = None
    contents: dict[str, Any] = field(default_factory=dict)
    resumes: bool = False  # or forks, where there is a path
    damaged: tuple[Path, ...] = ()

    @property
    def pieces(self) -> int | None:
        """Into how many pieces the batches of the run that is resumed were cut."""
        return self.contents["metadata"].get("pieces", 1) if self.resumes else None

    def load_into(self, trainer: Trainer) -> list[str]:
        """Returns why the last bits may differ from those of a run that was never stopped.

        The contents are dropped, so that the file is no longer mapped: else it would take up disk
        space even after it was deleted.
        """
        if self.path is None:
            return []
        contents, told = self.contents, self.contents["metadata"]
        began = contents["config"]["train"].get("init_from")
        if sharded.is_one(self.path):
            contents = sharded.read_tensors(self.path, contents, trainer.place)
        if self.resumes:
            trainer.load_state_dict(contents, str(self.path))
        else:
            trainer.fork(contents, str(self.path))
        self.contents.clear()
        if not self.resumes:
            return []
        found, now = self._warnings(told, trainer), trainer.config.train
        if now.init_from != began and now.adapter.kind == "none":
            found.append(
                f"train.init_from={now.init_from} does nothing: the run goes on from {self.path}, "
                f"and began with {began or 'new weights'}"
            )
        return found

    def _warnings(self, told: dict[str, Any], trainer: Trainer) -> list[str]:
        found = []
        then, now = told.get("threads"), torch.get_num_threads()
        if then not in (None, now):
            found.append(
                f"{self.path} was computed with {then} threads, and here are {now}: on a CPU, sums "
                f"may differ in their last bits (OMP_NUM_THREADS={then} makes them equal)"
            )
        if told.get("pieces", 1) != trainer.pieces:
            found.append(
                f"{self.path} was trained in batches of {told.get('pieces', 1)} pieces, and for so "
                f"many ranks there are {trainer.pieces}: other random numbers from here on"
            )
        before = told.get("products")
        here = backend(trainer.pipeline.device, trainer.config.train.kernels)
        if before not in (None, here):
            found.append(
                f"{self.path} was computed by {before}, and here it is {here}: on a CPU, the last "
                f"bits may differ"
            )
        return found

    def __str__(self) -> str:
        if self.path is None:
            return "from scratch"
        return f"from {self.path}" if self.resumes else f"a new run from the weights of {self.path}"


SCRATCH = Start()


def find_start(
    folder: Path, config: RunConfig, resume: str | None, overwrite: bool, fork: Path | None
) -> Start:
    """Where a run with these options starts; a UserError rather than writing over a run."""
    if resume is not None and overwrite:
        raise UserError("--resume and --overwrite contradict each other; give one of them")
    own_base = config.train.adapter.kind != "none"  # which a LoRA needs wherever it starts
    if fork is not None and config.train.init_from is not None and not own_base:
        raise UserError("--fork and train.init_from contradict each other; give one of them")
    if resume not in (None, "auto") and fork is not None:
        raise UserError("--resume PATH and --fork contradict each other; give one of them")
    if resume == "auto":
        start = _newest_good(folder)
    elif resume is not None:
        path = checkpoints.newest(Path(resume))
        start = Start(path, checkpoints.load(path, in_shares=True), resumes=True)
    else:
        if overwrite:
            _refuse_to_delete(folder, config, fork)
        else:
            refuse_to_write_over(folder)
        start = Start()
    if start.path is not None:
        _check_resumable(folder, config, start)
    elif fork is not None:
        path = checkpoints.newest(fork)
        start = Start(path, checkpoints.load(path, in_shares=True))
        check_same(_config_of(start), config, WEIGHTS, str(path))
    return start


def refuse_to_write_over(folder: Path) -> None:
    there = checkpoints.find(folder)
    if there:
        raise UserError(
            f"{folder} already holds a run, at step {there[-1][0]}; add --resume auto to continue "
            f"it, --overwrite to start again, or output_dir=... to leave it alone"
        )


def _refuse_to_delete(folder: Path, config: RunConfig, fork: Path | None) -> None:
    """Raises a UserError where the new run begins from the one that it would take the place of."""
    teacher = getattr(config.objective, "teacher", None)
    for name, source in {
        "--fork": fork,
        "train.init_from": config.train.init_from,
        "objective.teacher": teacher,
    }.items():
        where = Path(source).resolve() if source is not None else None
        if where is not None and folder.resolve() in (where, *where.parents):
            raise UserError(
                f"{name}={source}: --overwrite would delete it with the run in {folder}; set "
                f"output_dir to another folder"
            )


def _newest_good(folder: Path) -> Start:
    """The newest checkpoint of a run that is as it was written, if it has any checkpoint."""
    damaged: list[Path] = []
    for _, path in reversed(checkpoints.find(folder)):
        try:
            return Start(
                path, checkpoints.load(path, in_shares=True), resumes=True, damaged=tuple(damaged)
            )
        except DamagedFileError as error:
            damaged.append(path)
            last = error
    if damaged:
        raise UserError(
            f"{folder} has no good checkpoint to resume: {last}; add --overwrite to start again"
        )
    return Start()


def _check_resumable(folder: Path, config: RunConfig, start: Start) -> None:
    check_same(_config_of(start), config, COURSE, str(start.path))
    there = checkpoints.find(folder)
    if there and start.path is not None and start.path.parent.resolve() != folder.resolve():
        raise UserError(
            f"{folder} holds another run than {start.path}, at step {there[-1][0]}; set output_dir "
            f"to another folder, or move that run away"
        )
    later = [
        step for step, path in there if step > start.contents["step"] and path not in start.damaged
    ]
    if later:
        raise UserError(
            f"{folder} holds a checkpoint of step {later[-1]}, later than {start.path}; set "
            f"output_dir to another folder, or move the later ones away"
        )


def _config_of(start: Start) -> RunConfig:
    return build_config(start.contents["config"], str(start.path), saved=True)
