"""A real study of tiny runs, killed, damaged and added to, finds what it would have found."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from reliability.lives import Life
from study_makers import declare

from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.studies.measuring import code_digest

pytestmark = pytest.mark.slow
RUNS = "output/studies/study/runs"
FULL = Path("/dev/full")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """study("--jobs", 2): runs the command where the study is, gives exit code and output."""
    monkeypatch.chdir(tmp_path)
    declare(tmp_path)

    def study(*options):
        command = [sys.executable, "-m", "fluxsmith", "study", "study.yaml", *map(str, options)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    return study


def figures(folder):
    """What a study found, without times."""
    found = json.loads((folder / "output/studies/study/study.json").read_text(encoding="utf-8"))
    return found["figures"], found["comparisons"], [run["figures"] for run in found["runs"]]


def test_a_killed_study_goes_on_and_finds_what_it_would_have_found(study, tmp_path):
    code, said = study("--jobs", 2)
    assert code == 0, said
    whole = figures(tmp_path)
    weights = (tmp_path / RUNS / "slow-1" / "diffusion-12.pt").read_bytes()
    shutil.rmtree(tmp_path / "output")
    kills, ends = 0, {0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM}
    for patience in range(6, 60, 3):
        life = Life(tmp_path / "log.txt", "study", "study.yaml")
        time.sleep(patience)
        ended = life.ended()
        if not ended:
            life.send(signal.SIGKILL if kills % 2 == 0 else signal.SIGTERM)
            kills += 1
        assert life.wait() in ({0} if ended else ends), life.text()
        if (tmp_path / "output/studies/study/study.json").exists():
            break
    assert kills > 1
    assert figures(tmp_path) == whole
    assert checkpoints.load(tmp_path / RUNS / "slow-1" / "diffusion-12.pt")["step"] == 12
    assert len((tmp_path / RUNS / "slow-1" / "diffusion-12.pt").read_bytes()) == len(weights)


def test_damage_is_mended_runs_are_added_and_a_changed_base_is_refused(study, tmp_path):
    assert study()[0] == 0
    before = figures(tmp_path)
    runs = tmp_path / RUNS
    made = (runs / "slow-0" / "evaluation.json").stat().st_mtime_ns
    shutil.rmtree(runs / "slow-1")
    (runs / "fast-0" / "evaluation.json").write_text("{", encoding="utf-8")
    checkpoint = runs / "fast-0" / "diffusion-12.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    code, said = study()
    assert code == 0, said
    assert "slow-1: no checkpoint is in" in said
    assert "fast-0: no checkpoint in" in said
    assert figures(tmp_path) == before
    declare(tmp_path, seeds=3, arms={"slow": [], "fast": ["train.learning_rate=0.01"],
                                     "wild": ["train.learning_rate=100"]})  # fmt: skip
    code, said = study()
    assert code == 0, said
    assert (runs / "slow-0" / "evaluation.json").stat().st_mtime_ns == made
    assert len(list(runs.glob("*/evaluation.json"))) + len(list(runs.glob("*.failed.json"))) == 9
    base = tmp_path / "base.yaml"
    text = base.read_text(encoding="utf-8")
    base.write_text(text.replace("steps: 12", "steps: 16"), encoding="utf-8")
    code, said = study()
    assert code == 2
    assert "train.steps=16: slow-0 in output/studies/study was made with train.steps=12" in said
    code, said = study("--restart", "--dry-run")
    assert code == 0, said
    assert (runs / "slow-0" / "evaluation.json").exists()


def test_a_run_that_diverges_is_a_result_and_the_others_are_made(study, tmp_path):
    wild = ["train.learning_rate=100", "train.weight_decay=1000", "train.grad_clip=0",
            "train.max_bad_steps=2"]  # fmt: skip
    declare(tmp_path, arms={"slow": [], "wild": wild})
    code, said = study()
    assert code == 0, said
    assert "wild-1 failed, exit code 2: step 3: the gradient of a batch" in said
    assert "wild: 2 of 2 runs diverged, of seed 0, 1" in said
    assert "wild against slow, validation_loss: no answer" in said
    records = sorted((tmp_path / RUNS).glob("*.failed.json"))
    times = [record.stat().st_mtime_ns for record in records]
    assert study()[0] == 0
    assert [record.stat().st_mtime_ns for record in records] == times
    assert len(times) == 2


def test_drawings_are_added_without_training_and_impossible_figures_change_nothing(study, tmp_path):
    assert study()[0] == 0
    before, runs = figures(tmp_path), tmp_path / RUNS
    assert (runs / "slow-0.code").read_text(encoding="utf-8").split() == [code_digest()]
    result = runs / "slow-0" / "evaluation.json"
    made = json.loads(result.read_text(encoding="utf-8"))
    assert made["code"] == [code_digest()]
    result.write_text(json.dumps(made | {"code": "other"}), encoding="utf-8")
    declare(tmp_path, figures=["composition"])
    code, said = study()
    assert code == 2
    assert "composition: is for data.source=colored-digits" in said
    assert not list(runs.glob("*.failed.json"))
    assert figures(tmp_path) == before
    drawings = {"g1": {"guidance": 1, "num_samples": 10}, "g2": {"guidance": 2, "num_samples": 10}}
    declare(tmp_path, drawings=drawings, figures=["g2.straightness"])
    code, said = study("--answer-only")
    assert code == 0, said
    assert "slow: 2 of 2 runs are not measured in all drawings" in said
    assert figures(tmp_path)[0]["validation_loss"] == before[0]["validation_loss"]
    trained = (runs / "slow-0" / "metrics.jsonl").read_bytes()
    code, said = study()
    assert code == 0, said
    assert "not all made by the same code" in said
    assert (runs / "slow-0" / "metrics.jsonl").read_bytes() == trained
    assert json.loads(result.read_text(encoding="utf-8"))["code"] == [code_digest(), "other"]
    assert len(figures(tmp_path)[0]["g2.straightness"]["means"]) == 2


@pytest.mark.skipif(not FULL.exists(), reason="there is no disk that is always full")
def test_a_full_disk_ends_a_study_with_a_line_and_it_goes_on(study, tmp_path):
    first = tmp_path / RUNS / "slow-0"

    def full():
        first.mkdir(parents=True)
        (first / f".pictures-g1.png.{os.getpid()}.tmp").symlink_to(FULL)

    life = Life(tmp_path / "log.txt", "study", "study.yaml", prepare=full)
    assert life.wait(300) == 2
    assert "No space left on device; make room, and the same command goes on" in life.text()
    assert "Traceback" not in life.text()
    assert not list((tmp_path / RUNS).glob("*.failed.json"))
    trained = (first / "metrics.jsonl").read_bytes()
    code, said = study()
    assert code == 0, said
    assert (first / "metrics.jsonl").read_bytes() == trained


def test_two_at_once_are_refused(study, tmp_path):
    life = Life(tmp_path / "log.txt", "study", "study.yaml")
    life.until(lambda: (tmp_path / RUNS).exists())
    code, said = study()
    life.send(signal.SIGINT)
    assert life.wait() == 130
    assert life.text().count("stopped:") == 1
    assert code == 2
    assert "this study is going on already" in said
