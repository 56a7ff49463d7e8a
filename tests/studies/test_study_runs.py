"""A real study of tiny runs, killed, damaged and added to, finds what it would have found."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
from reliability.lives import Life
from study_makers import declare

from fluxsmith.storage import checkpoint as checkpoints

pytestmark = pytest.mark.slow
RUNS = "output/studies/study/runs"


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
    kills = 0
    while not (tmp_path / "output/studies/study/study.json").exists():
        life = Life(tmp_path / "log.txt", "study", "study.yaml")
        time.sleep(6 + 3 * kills)
        if not life.ended():
            life.send(signal.SIGKILL if kills % 2 == 0 else signal.SIGTERM)
            kills += 1
        assert life.wait() <= 0 or kills, life.text()
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


def test_two_at_once_are_refused(study, tmp_path):
    life = Life(tmp_path / "log.txt", "study", "study.yaml")
    life.until(lambda: (tmp_path / RUNS).exists())
    code, said = study()
    life.send(signal.SIGINT)
    assert life.wait() == 130
    assert life.text().count("stopped:") == 1
    assert code == 2
    assert "this study is going on already" in said
