"""What may change on resuming does, what may not is named, and a fork starts anew from weights."""

import subprocess
import sys

import pytest
import torch
from helpers import same
from reliability.kill import board

from fluxsmith import checkpoint as checkpoints
from fluxsmith.errors import UserError
from fluxsmith.model import onednn, passes
from fluxsmith.training.metrics import read_metrics
from fluxsmith.training.run import build_trainer, train

KEEP = ("train.checkpoint_every=2", "train.keep_checkpoints=0")


def last(folder):
    return checkpoints.load(checkpoints.newest(folder))


def left_behind(folder):
    """What a run left, to the byte, and its records but for how fast it was."""
    files = {
        p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".pt", ".png", ".txt")
    }
    del files["loss.png"]  # whose pixels depend on the fonts that are there
    records = read_metrics(folder / "metrics.jsonl")
    return files, [{k: v for k, v in r.items() if k != "images_per_second"} for r in records]


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
        ]),
    ],
)  # fmt: skip
def test_a_resumed_run_leaves_the_same_bytes(toy, toy_file, run_folder, device):
    """Weights, average, moments, records, sample grids: on a GPU by train.deterministic, and in
    processes of their own, since cuBLAS reads its setting once."""
    plan = (*KEEP, "train.log_every=1", "train.sample_every=2", f"device={device}")

    def run(*options):
        if device == "cpu":
            assert train(toy(*plan), resume="auto" if options else None) == 0
            return
        command = [sys.executable, "-m", "fluxsmith", "train", str(toy_file), *plan, *options]
        command += ["train.deterministic=true"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    run()
    whole = left_behind(run_folder)
    assert {"sample-2.png", "sample-6.png", "diffusion-4.pt"} <= whole[0].keys()
    assert [record["step"] for record in whole[1]] == [1, 2, 3, 4, 5, 6]
    for step in (4, 6):
        (run_folder / f"diffusion-{step}.pt").unlink()
    run("--resume", "auto")
    assert left_behind(run_folder) == whole


def test_a_fork_starts_at_step_0_from_the_averaged_weights(toy, run_folder, tmp_path):
    assert train(toy()) == 0
    base = last(run_folder)
    new = f"output_dir={tmp_path / 'new'}"
    changes = ("seed=5", "train.batch_size=4", "train.learning_rate=1e-8", "data.flip=true")
    assert train(toy(new, *changes, "train.steps=1"), fork=run_folder) == 0
    forked = last(tmp_path / "new")
    assert forked["step"] == 1
    assert forked["metadata"]["forked_from"] == {
        "checkpoint": str(run_folder / "diffusion-6.pt"),
        "step": 6,
    }
    for name, tensor in base["ema"].items():
        torch.testing.assert_close(forked["model"][name], tensor, atol=1e-7, rtol=1e-6)
    assert [r["step"] for r in read_metrics(tmp_path / "new" / "metrics.jsonl")] == [1]


def test_a_fork_is_a_run_that_resumes_to_the_bit(toy, run_folder, tmp_path):
    assert train(toy(*KEEP)) == 0
    new = (f"output_dir={tmp_path / 'new'}", "seed=5", *KEEP)
    assert train(toy(*new), fork=run_folder) == 0
    whole = last(tmp_path / "new")
    (tmp_path / "new" / "diffusion-6.pt").unlink()
    (tmp_path / "new" / "diffusion-4.pt").unlink()
    assert train(toy(*new), resume="auto", fork=run_folder) == 0  # a scheduler's one command
    again = last(tmp_path / "new")
    for key in ("model", "ema", "optimizer", "window", "data", "metadata"):
        assert same(whole[key], again[key]), key


def test_a_fork_can_have_other_data_but_no_other_model(toy, run_folder, tmp_path):
    assert train(toy()) == 0
    new = f"output_dir={tmp_path / 'new'}"
    for change in ("model.theta=100", "text.depth=2", "data.channels=3"):
        with pytest.raises(UserError, match=change.partition("=")[0]):
            train(toy(new, change), fork=run_folder)
    assert not (tmp_path / "new").exists()
    assert train(toy(new, "data.image_size=32", "train.steps=1"), fork=run_folder) == 0


def test_a_fork_writes_over_no_run(toy, run_folder):
    assert train(toy()) == 0
    with pytest.raises(UserError, match="already holds a run"):
        train(toy(), fork=run_folder)
    with pytest.raises(UserError, match="--resume PATH and --fork contradict"):
        train(toy(), resume=str(run_folder), fork=run_folder)


@pytest.mark.parametrize(
    ("change", "forkable"),
    [
        ("seed=1", True),
        ("train.batch_size=4", True),
        ("data.caption_dropout=0.5", True),
        ("flow.timesteps=uniform", True),
        ("model.depth=2", False),
        ("text.width=128", False),
    ],
)
def test_what_may_not_change_is_named_with_the_way_out(toy, run_folder, change, forkable):
    assert train(toy()) == 0
    with pytest.raises(UserError) as caught:
        train(toy(change, "train.steps=8"), resume="auto")
    message = str(caught.value)
    assert change.partition("=")[0] in message
    assert len(message.splitlines()) == 1
    assert (f"--fork {run_folder / 'diffusion-6.pt'}" in message) == forkable


@pytest.mark.parametrize(
    "change",
    [
        "train.steps=9",
        "train.learning_rate=0.02",
        "train.log_every=3",
        "train.sample_every=2",
        "train.checkpoint_every=1",
        "train.on_save_error=stop",
        "train.max_bad_steps=3",
        "train.accumulate=2",
        "sample.steps=2",
        "evaluate.every=3",
    ],
)
def test_what_may_change_does(toy, run_folder, change):
    assert train(toy("train.steps=5", "train.log_every=2")) == 0
    assert train(toy("train.steps=8", "train.log_every=2", change), resume="auto") == 0
    steps = [r["step"] for r in read_metrics(run_folder / "metrics.jsonl")]
    assert steps == sorted(set(steps))
    assert steps[-1] == checkpoints.find(run_folder)[-1][0]


def test_pictures_past_the_checkpoint_are_dropped_like_the_records(toy, run_folder):
    """They belong to a course that the resumed run may not take."""
    plan = (*KEEP, "train.log_every=1")
    assert train(toy(*plan, "train.sample_every=1")) == 0
    for step in (4, 6):
        (run_folder / f"diffusion-{step}.pt").unlink()
    assert train(toy(*plan, "train.sample_every=2", "train.steps=5"), resume="auto") == 0
    pictures = {int(p.stem.split("-")[1]) for p in run_folder.glob("sample-*.png")}
    assert pictures == {1, 2, 4}
    assert {int(p.stem.split("-")[1]) for p in run_folder.glob("sample-*.txt")} == {1, 2, 4}
    found = board(run_folder)
    assert [step for step, tag in found if tag == "samples"] == [1, 2, 4]
    assert [step for step, tag in found if tag == "train/loss"] == [1, 2, 3, 4, 5]


def test_moments_of_another_shape_are_refused(toy, run_folder):
    """AdamW would broadcast them without a word."""
    assert train(toy()) == 0
    state = last(run_folder)
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)
    trainer = build_trainer(toy(), torch.device("cpu"))
    with pytest.raises(UserError, match=r"optimiser: exp_avg is \(1,\) for"):
        trainer.load_state_dict(state, "x.pt")


def test_deterministic_changes_no_bit_on_a_cpu_and_leaves_torch_as_it_was(toy, tmp_path):
    found = []
    for wanted in ("true", "false"):
        new = f"output_dir={tmp_path / wanted}"
        assert train(toy(new, f"train.deterministic={wanted}")) == 0
        found.append(last(tmp_path / wanted))
        assert not torch.are_deterministic_algorithms_enabled()
    assert same(found[0]["model"], found[1]["model"])


def test_other_threads_are_told(toy, run_folder, capsys):
    assert train(toy()) == 0
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert train(toy("train.steps=7"), resume="auto") == 0
    finally:
        torch.set_num_threads(before)
    line = f"was computed with {before} threads, and here are {before + 1}"
    assert line in capsys.readouterr().out


def test_other_libraries_are_told(toy, run_folder, capsys, monkeypatch):
    monkeypatch.setattr(onednn, "ONEDNN_IS_QUICKER", False)
    monkeypatch.setattr(passes, "library", lambda: "no compiler")
    assert train(toy()) == 0
    monkeypatch.setattr(onednn, "library", lambda: "oneDNN")
    monkeypatch.setattr(passes, "library", lambda: None)
    assert train(toy("train.steps=7"), resume="auto") == 0
    assert "was computed by torch, and here it is oneDNN and C++" in capsys.readouterr().out
