"""Where the records of a run are shown: TensorBoard, Weights & Biases, MLflow. Each is made from
metrics.jsonl, and can be made again. A resumed run goes on in the same run of theirs, whose name is
kept in the run's folder."""

import os
import time
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
    """A run of Weights & Biases, whose project is $WANDB_PROJECT or fluxsmith.

    What is there already its service knows. Without one (WANDB_MODE=offline) each start begins a
    folder that knows nothing of those before it, so beside the run's name is kept what they hold.
    """

    def __init__(self, folder: Path, fresh: bool) -> None:
        self._wandb, self._file = library("wandb"), folder / "wandb.txt"
        name, project = folder.name, os.environ.get("WANDB_PROJECT") or "fluxsmith"
        self._id, *sent = _kept(self._file, fresh, lambda: token_hex(8)).split()
        rows, self.last, self.last_picture = map(int, sent or (0, -1, -1))
        self._run = self._wandb.init(project=project, name=name, id=self._id, resume="allow")
        self._run.define_metric("*", step_metric="step")
        self._rows = max(rows, self._run.step)  # of theirs, in all folders
        if not getattr(self._run, "offline", False):
            summary = self._run.summary  # its step is that of a picture where one came last
            self.last = int(summary.get("record_step", summary.get("step", -1)))
            self.last_picture = int(summary.get("picture_step", -1))

    def write(self, step: int, record: Mapping[str, float]) -> None:
        self.last = step
        self._log({"step": step, "record_step": step, **record})

    def write_picture(self, step: int, png: Path) -> None:
        self.last_picture = step
        picture = self._wandb.Image(str(png))
        self._log({"step": step, "picture_step": step, "samples": picture})

    def _log(self, row: Mapping[str, Any]) -> None:
        self._run.log(row, step=self._rows, commit=True)
        self._rows += 1
        write_text(self._file, f"{self._id} {self._rows} {self.last} {self.last_picture}")


class MlflowLogger:
    """A run of MLflow, in the experiment $MLFLOW_EXPERIMENT_NAME or fluxsmith."""

    last_picture = -1  # each is a file that is written again

    def __init__(self, folder: Path, fresh: bool) -> None:
        mlflow = library("mlflow")
        self._client, self._metric = mlflow.MlflowClient(), mlflow.entities.Metric
        self._id = _kept(folder / "mlflow.txt", fresh, lambda: self._new_run(folder.name))
        self.last = int(self._client.get_run(self._id).data.metrics.get("step", -1))
        self._client.update_run(self._id, status="RUNNING")

    def end(self, status: str) -> None:
        self._client.set_terminated(self._id, status)

    def _new_run(self, name: str) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fluxsmith"
        known = self._client.get_experiment_by_name(experiment)
        where = known.experiment_id if known else self._client.create_experiment(experiment)
        return str(self._client.create_run(where, run_name=name).info.run_id)

    def write(self, step: int, record: Mapping[str, float]) -> None:
        now = round(time.time() * 1000)
        figures = [self._metric(*item, now, step) for item in {**record, "step": step}.items()]
        self._client.log_batch(self._id, figures)  # a request for all of them

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
