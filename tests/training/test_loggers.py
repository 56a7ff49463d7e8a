"""Records in other people's services: `train.loggers`."""

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fluxsmith.errors import UserError
from fluxsmith.training.loggers import WandbLogger
from fluxsmith.training.recorder import read_metrics
from fluxsmith.training.run import train


class Service:
    """Stands for the service behind the wandb package: what it was sent, by run."""

    def __init__(self) -> None:
        self.runs: dict[str, list[dict]] = {}
        self.down = False

    def init(self, *, id: str, **_) -> SimpleNamespace:  # noqa: A002 (theirs)
        sent = self.runs.setdefault(id, [])

        def log(record: dict, step: int, commit: bool) -> None:
            assert commit and step == len(sent)
            if self.down:
                raise ConnectionError("no network")
            sent.append(record)

        summary = {key: value for record in sent for key, value in record.items()}
        about = {"offline": False, "step": len(sent), "summary": summary}
        return SimpleNamespace(log=log, define_metric=lambda *_, **__: None, **about)

    def Image(self, file: str) -> str:  # noqa: N802 (theirs)
        return file


@pytest.fixture
def service(monkeypatch):
    found = Service()
    monkeypatch.setitem(sys.modules, "wandb", found)
    return found


def test_a_resumed_run_goes_on_in_the_same_one_and_sends_each_step_once(toy, service, tmp_path):
    plan = ("train.loggers=[wandb]", "train.log_every=1", "train.checkpoint_every=2")
    assert train(toy(*plan, "train.steps=4")) == 0
    assert train(toy(*plan, "train.steps=6"), resume="auto") == 0
    (sent,) = service.runs.values()
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in sent] == [1, 2, 3, 4, 5, 6]
    assert [record["loss"] for record in sent] == [record["loss"] for record in records]


def test_training_goes_on_where_a_service_does_not_answer(toy, service, tmp_path, capsys):
    service.down = True
    assert train(toy("train.loggers=[wandb]", "train.log_every=1", "train.steps=3")) == 0
    assert capsys.readouterr().out.count("wandb can't be written: no network") == 1
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 3


def test_a_logger_that_is_not_installed_names_its_extra_before_anything_is_made(
    toy, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # cannot be imported
    with pytest.raises(UserError, match=r"train\.loggers=\[mlflow\].*fluxsmith\[mlflow\]"):
        train(toy("train.loggers=[tensorboard, mlflow]"))
    assert not (tmp_path / "run").exists()


def test_pictures_that_are_sent_again_hide_no_record(service, tmp_path):
    """As where a logger is made anew within a run, and older pictures come after its records."""
    logger = WandbLogger(tmp_path, fresh=True)
    for step in (1, 2, 3):
        logger.write(step, {"loss": 1.0})
    (tmp_path / "sample-2.png").write_bytes(b"")
    logger.write_picture(2, tmp_path / "sample-2.png")
    again = WandbLogger(tmp_path, fresh=False)
    assert (again.last, again.last_picture) == (3, 2)


def stopped_and_resumed(toy_file, logger: str, **env: str) -> list[dict[str, float]]:
    """The records of a run with a logger that is stopped after 3 steps and resumed to 5, with a
    picture after each second step, each time by a process of its own."""
    plan = "train.log_every=1", "train.sample_every=2", f"train.loggers=[tensorboard,{logger}]"
    for steps in (3, 5):
        call = (sys.executable, "-m", "fluxsmith", "train", str(toy_file), f"train.steps={steps}")
        subprocess.run(
            [*call, *plan, "--resume", "auto"],
            env=os.environ | env, cwd=toy_file.parent, check=True, capture_output=True,
        )  # fmt: skip
    return read_metrics(toy_file.parent / "run" / "metrics.jsonl")


@pytest.mark.slow
def test_mlflow_has_each_step_and_each_picture_of_a_resumed_run_once(toy_file, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    records = stopped_and_resumed(toy_file, "mlflow", MLFLOW_TRACKING_URI=store)
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("fluxsmith")
    (run,) = client.search_runs([experiment.experiment_id])
    for key in ("loss", "gradient/dual"):
        found = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
        assert found == [(record["step"], record[key]) for record in records]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "step")] == [1, 2, 3, 4, 5]
    pictures = [file.path for file in client.list_artifacts(run.info.run_id)]
    assert pictures == ["sample-2.png", "sample-4.png"]
    assert run.info.status == "FINISHED"


def rows_of(file: Path) -> Iterator[dict[str, str]]:
    """What wandb wrote: a log as LevelDB has it, of records in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, held = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        held += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last piece
            record = Record.FromString(held)
            held = b""
            if record.WhichOneof("record_type") == "history":
                yield {
                    item.key or item.nested_key[0]: item.value_json for item in record.history.item
                }


@pytest.mark.slow
def test_wandb_offline_has_each_step_and_each_picture_of_a_resumed_run_once(toy_file, tmp_path):
    pytest.importorskip("wandb.proto.wandb_internal_pb2")
    records = stopped_and_resumed(toy_file, "wandb", WANDB_MODE="offline")
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and files[0].name == files[1].name  # two parts of one run
    rows = [row for file in files for row in rows_of(file)]
    assert [int(row["_step"]) for row in rows] == list(range(len(rows)))  # theirs
    told = [(int(row["step"]), float(row["loss"])) for row in rows if "loss" in row]
    assert told == [(record["step"], record["loss"]) for record in records]
    assert [int(row["step"]) for row in rows if "picture_step" in row] == [2, 4]
