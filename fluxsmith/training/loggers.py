"""Where the records of a run are shown: TensorBoard, Weights & Biases, MLflow. Each is made from
metrics.jsonl, and can be made again.

A resumed run goes on in the same run of theirs, whose name is kept in the run's folder, and leaves
out the steps that are there already: they are equal to the bit.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

from fluxsmith.errors import UserError
from fluxsmith.optional import optional
from fluxsmith.storage.files import write_text
from fluxsmith.training.board import Board


class RunLogger(Protocol):
    def write(self, step: int, record: Mapping[str, float]) -> None: ...

    def write_picture(self, step: int, png: Path) -> None: ...


class WandbLogger:
    """A run of Weights & Biases, whose project is $WANDB_PROJECT or fluxsmith."""

    def __init__(self, folder: Path, fresh: bool) -> None:
        self._wandb = _library("wandb")
        with _their_errors():
            kept = _kept(folder / "wandb.txt", fresh, lambda: token_hex(8))
            self._run = self._wandb.init(
                project=_environment("WANDB_PROJECT"), name=folder.name, id=kept, resume="allow"
            )
            self._run.define_metric("*", step_metric="step")
            self._last = int(self._run.summary.get("step", -1))
            self._last_picture = int(self._run.summary.get("picture_step", -1))

    def write(self, step: int, record: Mapping[str, float]) -> None:
        if step > self._last:
            with _their_errors():
                self._run.log({"step": step, **record})
            self._last = step

    def write_picture(self, step: int, png: Path) -> None:
        if step > self._last_picture:
            with _their_errors():
                picture = self._wandb.Image(str(png))
                self._run.log({"step": step, "picture_step": step, "samples": picture})
            self._last_picture = step


class MlflowLogger:
    """A run of MLflow, in the experiment $MLFLOW_EXPERIMENT_NAME or fluxsmith."""

    def __init__(self, folder: Path, fresh: bool) -> None:
        mlflow = _library("mlflow")
        with _their_errors():
            self._client = mlflow.MlflowClient()
            name = _environment("MLFLOW_EXPERIMENT_NAME")
            known = self._client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else self._client.create_experiment(name)

            def new_run() -> str:
                made = self._client.create_run(experiment, run_name=folder.name)
                return str(made.info.run_id)

            self._id = _kept(folder / "mlflow.txt", fresh, new_run)
            self._last = int(self._client.get_run(self._id).data.metrics.get("step", -1))

    def write(self, step: int, record: Mapping[str, float]) -> None:
        if step > self._last:
            with _their_errors():
                for key, value in {**record, "step": step}.items():
                    self._client.log_metric(self._id, key, value, step=step)
            self._last = step

    def write_picture(self, step: int, png: Path) -> None:
        with _their_errors():
            self._client.log_artifact(self._id, str(png))


LOGGERS: dict[str, Callable[[Path, bool], RunLogger]] = {
    "tensorboard": lambda folder, fresh: Board(folder / "tensorboard"),
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}
TITLES = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases", "mlflow": "MLflow"}


def check_installed(loggers: Sequence[str]) -> None:
    """A UserError that names the extra of a logger whose library isn't there."""
    for name in set(loggers) - {"tensorboard"}:
        _library(name)


def _library(name: str) -> Any:
    return optional(name, name, f"train.loggers=[{name}]")


def _kept(file: Path, fresh: bool, new: Callable[[], str]) -> str:
    """The name of a run of theirs that a file keeps, or a new one for a run that begins."""
    if fresh or not file.is_file():
        write_text(file, new())
    return file.read_text(encoding="utf-8").strip()


def _environment(name: str) -> str:
    return os.environ.get(name) or "fluxsmith"


@contextmanager
def _their_errors() -> Iterator[Any]:
    """Turns any error of theirs, such as those of a network, into a line: training goes on."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(" ".join(str(error).split())[:200] or type(error).__name__) from None
