"""Records in other people's services: `train.loggers`."""

import sys
from types import SimpleNamespace

import pytest

from fluxsmith.errors import UserError
from fluxsmith.training.recorder import read_metrics
from fluxsmith.training.run import train


class Service:
    """Stands for the service behind the wandb package: what it was sent, by run."""

    def __init__(self) -> None:
        self.runs: dict[str, list[dict]] = {}
        self.down = False

    def init(self, *, id: str, **_) -> SimpleNamespace:  # noqa: A002 (theirs)
        sent = self.runs.setdefault(id, [])

        def log(record: dict) -> None:
            if self.down:
                raise ConnectionError("no network")
            sent.append(record)

        summary = {key: value for record in sent for key, value in record.items()}
        return SimpleNamespace(summary=summary, log=log, define_metric=lambda *_, **__: None)

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
