"""Where the records of a run are shown: TensorBoard, Weights & Biases, MLflow. Each is made from
metrics.jsonl, and can be made again. A resumed run goes on in the same run of theirs, whose name is
kept in the run's folder."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

from fluxsmith.optional import optional
from fluxsmith.storage.files import write_text
from fluxsmith.training.board import Board


class RunLogger(Protocol):
    """Any error of theirs, such as those of a network, may be raised."""

    last: int  # the step whose record is there already, as those before it are
    last_picture: int

    def write(self, step: int, record: Mapping[str, float]) -> None: ...

    def write_picture(self, step: int, png: Path) -> None: ...


class WandbLogger:
    """A run of Weights & Biases, whose project is $WANDB_PROJECT or fluxsmith."""

    def __init__(self, folder: Path, fresh: bool) -> None:
        self._wandb = library("wandb")
        name, project = folder.name, os.environ.get("WANDB_PROJECT") or "fluxsmith"
        kept = _kept(folder / "wandb.txt", fresh, lambda: token_hex(8))
        self._run = self._wandb.init(project=project, name=name, id=kept, resume="allow")
        self._run.define_metric("*", step_metric="step")
        self.last = int(self._run.summary.get("step", -1))
        self.last_picture = int(self._run.summary.get("picture_step", -1))

    def write(self, step: int, record: Mapping[str, float]) -> None:
        self._run.log({"step": step, **record})

    def write_picture(self, step: int, png: Path) -> None:
        picture = self._wandb.Image(str(png))
        self._run.log({"step": step, "picture_step": step, "samples": picture})


class MlflowLogger:
    """A run of MLflow, in the experiment $MLFLOW_EXPERIMENT_NAME or fluxsmith."""

    last_picture = -1  # each is a file that is written again

    def __init__(self, folder: Path, fresh: bool) -> None:
        self._client = library("mlflow").MlflowClient()
        self._id = _kept(folder / "mlflow.txt", fresh, lambda: self._new_run(folder.name))
        self.last = int(self._client.get_run(self._id).data.metrics.get("step", -1))

    def _new_run(self, name: str) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fluxsmith"
        known = self._client.get_experiment_by_name(experiment)
        where = known.experiment_id if known else self._client.create_experiment(experiment)
        return str(self._client.create_run(where, run_name=name).info.run_id)

    def write(self, step: int, record: Mapping[str, float]) -> None:
        for key, value in {**record, "step": step}.items():
            self._client.log_metric(self._id, key, value, step=step)

    def write_picture(self, step: int, png: Path) -> None:
        self._client.log_artifact(self._id, str(png))


LOGGERS: dict[str, Callable[[Path, bool], RunLogger]] = {
    "tensorboard": lambda folder, fresh: Board(folder / "tensorboard"),
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}


def library(name: str) -> Any:
    """That of a logger; a UserError that names its extra where it isn't there."""
    return None if name == "tensorboard" else optional(name, name, f"train.loggers=[{name}]")


def _kept(file: Path, fresh: bool, new: Callable[[], str]) -> str:
    """The name of a run of theirs that a file keeps, or a new one for a run that begins."""
    if fresh or not file.is_file():
        write_text(file, new())
    return file.read_text(encoding="utf-8").strip()
