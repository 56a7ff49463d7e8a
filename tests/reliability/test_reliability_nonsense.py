"""Nonsense gets a result or one line; never a traceback, never a hang, never more than that."""

import io
import json
import sys

import pytest
from reliability.comparing import steps_on_board, steps_recorded

from fluxsmith.cli import main
from fluxsmith.config import read_config
from fluxsmith.config.reading import LONGEST
from fluxsmith.errors import UserError
from fluxsmith.pipeline import Pipeline
from fluxsmith.sampling.request import default_folder
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.run import train

BASE = "data: {source: digits}\n"


@pytest.mark.parametrize("text", ["x: " + "[" * 50000, "a" * 300000], ids=["deep", "long"])
def test_yaml_without_end_is_refused_at_once(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=f"recursion|{LONGEST:,}") as caught:
        read_config(file)
    assert len(str(caught.value).splitlines()) == 1


def test_anchors_are_welcome(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("train: {betas: &b [0.5, 0.75]}\nsample: {guidance_interval: *b}\n" + BASE)
    config = read_config(file)
    assert config.train.betas == config.sample.guidance_interval == [0.5, 0.75]


def test_a_name_is_no_path_and_names_no_folder(tmp_path, toy, monkeypatch):
    for name in ("../../x", "a/b", "/etc/x", "a\\b", "a\x1b[2J", "a\nb"):
        with pytest.raises(UserError, match="must be a name, without slashes"):
            toy(f"name={json.dumps(name)}")
    monkeypatch.chdir(tmp_path)
    assert train(toy("name=..", "train.steps=1")) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"toy.yaml", "run"}


@pytest.mark.parametrize("claimed", ["/etc/fluxsmith", "a/../../x"])
def test_a_strangers_checkpoint_does_not_decide_where_pictures_go(toy, tmp_path, claimed):
    """They go below the working folder, or beside the checkpoint."""
    folder = tmp_path / "downloads"
    config = toy("train.steps=1", f"output_dir={folder}")
    assert train(config) == 0
    path = folder / "diffusion-1.pt"
    contents = checkpoints.load(path)
    contents["config"]["output_dir"] = claimed
    checkpoints.save(folder / "strange.pt", contents)
    pipeline = Pipeline.from_checkpoint(folder / "strange.pt", device="cpu")
    assert default_folder(pipeline, folder / "strange.pt") == tmp_path / "sample" / "downloads"
    own = Pipeline.from_checkpoint(path, device="cpu")
    assert default_folder(own, path) == tmp_path / "sample" / "downloads"


def test_a_small_file_can_not_claim_a_huge_model(toy, tmp_path):
    """Refused from its shapes alone, before any of it takes memory."""
    assert train(toy("train.steps=1")) == 0
    contents = checkpoints.load(tmp_path / "run" / "diffusion-1.pt")
    contents["config"]["model"] |= {"depth": 200, "hidden_size": 65536, "num_heads": 1024}
    checkpoints.save(tmp_path / "huge.pt", contents)
    with pytest.raises(UserError, match=r"doesn't fit this model: .*Missing key"):
        Pipeline.from_checkpoint(tmp_path / "huge.pt")


def test_images_too_large_for_the_machine_are_refused_before_they_are_made(toy):
    with pytest.raises(UserError, match=r"data.image_size=16384: 1,415 images of that size take"):
        train(toy("data.image_size=16384", "model.patch_size=64"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "a\x1b[2J\nb"],
        ["train", "c\udcff.yaml"],
        ["train", "x" * 300 + ".yaml"],
    ],
)
def test_what_a_terminal_would_act_upon_is_shown_as_an_escape(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed[:-1].isprintable()


def test_names_that_the_output_can_not_encode_are_printed_all_the_same(toy, tmp_path, monkeypatch):
    assert train(toy("train.steps=1")) == 0
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", printed)
    with pytest.raises(SystemExit) as exit_:
        main(["sample", str(tmp_path / "run"), "--prompt=3", "--out", f"{tmp_path}/\udcff"])
    printed.seek(0)
    assert not exit_.value.code
    assert "\\udcff" in printed.read()


def test_records_that_nobody_wrote_stop_no_run(toy, tmp_path):
    """A resumed run leaves them out, and shows TensorBoard the rest."""
    assert train(toy("train.log_every=1", "train.sample_every=2")) == 0
    folder = tmp_path / "run"
    with open(folder / "metrics.jsonl", "ab") as stream:
        for record in ({"step": 3, "loss": "low"}, {"step": 4, "loss": [1]}, {"step": True}):
            stream.write(json.dumps(record).encode() + b"\n")
        stream.write(b'{"step": 5, "loss": 1e999}\n' + b"[" * 100_000 + b"\n{")
    (folder / "sample-2.png").write_bytes(b"no picture")
    assert train(toy("train.log_every=1", "train.steps=8"), resume="auto") == 0
    assert steps_recorded(folder) == steps_on_board(folder) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert steps_on_board(folder, "samples") == [4, 6]
