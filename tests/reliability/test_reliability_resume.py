"""What may change on resuming does, what may not is named, and a fork starts anew from weights."""

import subprocess
import sys

import pytest
import torch
from helpers import same
from reliability.comparing import COURSE, KEEP, left_behind, steps_on_board, steps_recorded

from fluxsmith.errors import UserError
from fluxsmith.kernels.accelerate import backend
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.run import build_trainer, train


def last(folder):
    return checkpoints.load(checkpoints.newest(folder))


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
    """Weights, average, moments, records, sample grids, also where the cut falls between two
    records: on a GPU by train.deterministic, and in processes of their own, since cuBLAS reads its
    setting once."""
    plan = ("train.checkpoint_every=1", "train.keep_checkpoints=0", "train.sample_every=2")
    plan += (f"device={device}",)

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
    assert {"sample-2.png", "sample-6.png", "diffusion-4.pt"} <= whole.keys()
    assert [record["step"] for record in whole["metrics"]] == [2, 4, 6]
    for step in (4, 5, 6):
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
    assert steps_recorded(tmp_path / "new") == [1]


def test_a_fork_is_a_run_that_resumes_to_the_bit(toy, run_folder, tmp_path):
    assert train(toy(*KEEP)) == 0
    new = (f"output_dir={tmp_path / 'new'}", "seed=5", *KEEP)
    assert train(toy(*new), fork=run_folder) == 0
    whole = last(tmp_path / "new")
    (tmp_path / "new" / "diffusion-6.pt").unlink()
    (tmp_path / "new" / "diffusion-4.pt").unlink()
    assert train(toy(*new), resume="auto", fork=run_folder) == 0  # a scheduler's one command
    again = last(tmp_path / "new")
    assert [key for key in (*COURSE, "metadata") if not same(whole[key], again[key])] == []


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


def test_a_run_that_the_new_one_begins_from_is_not_overwritten(toy, run_folder):
    assert train(toy()) == 0
    with pytest.raises(UserError, match=r"--fork=.*--overwrite would delete it"):
        train(toy("seed=1"), fork=run_folder, overwrite=True)
    with pytest.raises(UserError, match=r"train\.init_from=.*--overwrite would delete it"):
        train(toy(f"train.init_from={run_folder / 'diffusion-6.pt'}"), overwrite=True)
    assert last(run_folder)["step"] == 6


def test_a_run_of_elsewhere_is_not_resumed_over_another_one(toy, run_folder, tmp_path):
    assert train(toy()) == 0
    assert train(toy(f"output_dir={tmp_path / 'other'}", "train.steps=8")) == 0
    with pytest.raises(UserError, match=r"holds another run than .* at step 6"):
        train(toy("train.steps=9"), resume=str(tmp_path / "other"))
    assert steps_recorded(run_folder)[-1] == last(run_folder)["step"] == 6


def test_what_is_refused_is_refused_before_anything_is_made_to_measure_with(toy):
    assert train(toy()) == 0
    with pytest.raises(UserError, match="already holds a run"):
        train(toy(), evaluate=lambda: pytest.fail("it was made"))


@pytest.mark.parametrize(("change", "forkable"), [("seed=1", True), ("model.depth=2", False)])
def test_what_may_not_change_is_named_with_the_way_out(toy, run_folder, change, forkable):
    """The tests of the config say which keys these are."""
    assert train(toy()) == 0
    with pytest.raises(UserError) as caught:
        train(toy(change, "train.steps=8"), resume="auto")
    message = str(caught.value)
    assert change.partition("=")[0] in message
    assert len(message.splitlines()) == 1
    assert (f"--fork {run_folder / 'diffusion-6.pt'}" in message) == forkable


def test_what_may_change_does(toy, run_folder):
    assert train(toy("train.steps=5")) == 0
    changes = ("train.steps=9", "train.learning_rate=0.02", "train.log_every=3",
               "train.sample_every=2", "train.accumulate=2", "sample.steps=2")  # fmt: skip
    assert train(toy(*changes), resume="auto") == 0
    steps = steps_recorded(run_folder)
    assert steps == sorted(set(steps))
    assert steps[-1] == 9


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
    assert steps_on_board(run_folder, "samples") == [1, 2, 4]
    assert steps_on_board(run_folder) == [1, 2, 3, 4, 5]


def test_moments_of_another_shape_are_refused(toy, run_folder):
    """AdamW would broadcast them without a word."""
    assert train(toy()) == 0
    state = last(run_folder)
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)
    trainer = build_trainer(toy(), torch.device("cpu"))
    with pytest.raises(UserError, match=r"exp_avg is \(1,\) for"):
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


def test_other_libraries_are_told(toy, run_folder, capsys):
    here = backend(torch.device("cpu"))
    if here == "torch":
        pytest.skip("there is one way to compute here")
    assert train(toy("train.kernels=off")) == 0
    assert train(toy("train.steps=7"), resume="auto") == 0
    assert f"was computed by torch, and here it is {here}" in capsys.readouterr().out
