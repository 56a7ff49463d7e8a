"""The command line as a user meets it: what it prints, its exit codes, and that nothing is lost."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import TOY

from fluxsmith.cli import main
from fluxsmith.config import read_config
from fluxsmith.storage import checkpoint as checkpoints

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> int:
    """The exit code of a command run in this process."""
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in arguments])
    return int(exit_.value.code or 0)


def refused(capsys, *arguments: object) -> str:
    """The one line that a mistake gives, with exit code 2 and no traceback."""
    capsys.readouterr()
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err + printed.out
    return printed.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished toy run, which no test may change."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.yaml").write_text(f"{TOY}output_dir: {folder / 'run'}\n")
    assert run("train", folder / "toy.yaml") == 0
    return folder / "run"


def test_train_prints_the_resolved_config_and_writes_it(toy_file, tmp_path, capsys):
    assert run("train", toy_file, "train.steps=2", "seed=3") == 0
    printed = capsys.readouterr().out
    assert "  steps: 2\n" in printed
    assert "diffusion-2.pt" in printed
    written = read_config(tmp_path / "run" / "config.yaml")
    assert written == read_config(toy_file, ["train.steps=2", "seed=3"])


def test_sample_draws_what_the_pipeline_draws(trained, tmp_path, capsys):
    from PIL import Image

    from fluxsmith import Pipeline
    from fluxsmith.data.images import to_uint8
    from fluxsmith.sampling.render import to_pil

    out = tmp_path / "out"
    options = ("--prompt", "seven", "--prompt", "3", "--steps", 4, "--seed", 7, "--out", out)
    assert run("sample", trained, *options) == 0
    assert f"grid        {out / 'sample-6-seed7.png'}" in capsys.readouterr().out
    assert (out / "sample-6-seed7.txt").read_text() == "seven\n3\n"
    pipeline = Pipeline.from_checkpoint(trained / "diffusion-6.pt", device="cpu")
    images = to_uint8(pipeline.generate(["seven", "3"], steps=4, seed=7))
    for i in range(2):
        with Image.open(out / "sample-6-seed7" / f"{i:04d}.png") as picture:
            assert picture.tobytes() == to_pil(images[i]).tobytes()
            assert picture.text["prompt"] == ["seven", "3"][i]
            assert picture.text["index"] == str(i)


def test_a_picture_says_how_to_draw_it_again_and_that_gives_the_same_bytes(trained, tmp_path):
    import shlex

    from PIL import Image

    one, two = tmp_path / "one", tmp_path / "two"
    options = ("--num-samples", 3, "--prompt", "it's 3", "--guidance", 1.23456789)
    extras = ("--seed", 2, "--filmstrip", "--gif")
    assert run("sample", trained, *options, *extras, "--out", one) == 0
    with Image.open(one / "sample-6-seed2" / "0001.png") as picture:
        program, *arguments = shlex.split(picture.text["command"])
    assert program == "fluxsmith"
    assert run(*arguments, "--out", two) == 0
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert len(files) == 3 + 4  # pictures; grid, prompts, filmstrip, animation
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


def test_the_command_of_a_picture_names_its_checkpoints_and_nothing_else(trained, tmp_path):
    from fluxsmith.cli.options import TYPED, drawing_command

    folder, found = trained, trained / "diffusion-6.pt"
    loras = ["--lora", str(folder), "--lora", f"{folder}:0.5"]
    typed = ["sample", f"{folder}/", "--prompt", str(folder), *loras, "--out", "x"]
    told = TYPED.set(typed)
    try:
        command = drawing_command(folder, found)
    finally:
        TYPED.reset(told)
    expected = f"fluxsmith sample {found} --prompt {folder} --lora {found} --lora {found}:0.5"
    assert command == expected


def test_without_prompts_it_draws_captions_of_the_data(trained, tmp_path):
    from fluxsmith.data.captions import DIGIT_CAPTIONS

    known = {caption for ways in DIGIT_CAPTIONS for caption in ways}
    drawn = []
    for seed in (0, 1):
        assert run("sample", trained, "--num-samples", 12, "--seed", seed, "--out", tmp_path) == 0
        drawn.append((tmp_path / f"sample-6-seed{seed}.txt").read_text().split())
    assert len(drawn[0]) == 12
    assert set(drawn[0]) <= known
    assert drawn[0] != drawn[1]


def test_fewer_pictures_leave_none_of_an_earlier_call_behind(trained, tmp_path):
    for n in (5, 2):
        assert run("sample", trained, "--num-samples", n, "--out", tmp_path) == 0
    assert len(list((tmp_path / "sample-6-seed0").iterdir())) == 2


def test_config_show_reads_back_and_schema_is_json(toy_file, tmp_path, capsys):
    assert run("config", "show", toy_file, "train.steps=9") == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out)
    assert read_config(shown) == read_config(toy_file, ["train.steps=9"])
    assert run("config", "schema") == 0
    assert "train" in json.loads(capsys.readouterr().out)["properties"]


def test_a_config_given_to_sample_decides_how_it_samples(trained, toy_file, tmp_path):
    from PIL import Image

    other = tmp_path / "other.yaml"
    data = yaml.safe_load(toy_file.read_text())
    data["sample"] |= {"guidance": 1.0, "steps": 2, "num_samples": 3}
    data["data"]["caption_dropout"] = 0.5  # shapes training, not pictures
    other.write_text(yaml.safe_dump(data))
    assert run("sample", trained, "--config", other, "--out", tmp_path) == 0
    assert len((tmp_path / "sample-6-seed0.txt").read_text().splitlines()) == 3
    with Image.open(tmp_path / "sample-6-seed0.png") as picture:
        assert (picture.text["guidance"], picture.text["steps"]) == ("1.0", "2")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (
            ["train", "configs/image/mnist/smal.yaml"],
            "did you mean configs/image/mnist/small.yaml?",
        ),
        (["train", "{toy}", "train.stesp=3"], "unknown key; did you mean train.steps?"),
        (["train", "{toy}", "train.steps"], "KEY=VALUE"),
        (["train", "{toy}", "output_dir=/proc/no"], "can't write to /proc/no"),
        (["train", "{toy}", "--resume", "nope.pt"], "no checkpoint at nope.pt"),
        (["sample", "nope.pt"], "no checkpoint at nope.pt"),
        (["sample", "."], "no checkpoint in ."),
        (["evaluate", "nope.pt"], "no checkpoint at nope.pt"),
        (["smaple"], "smaple"),
        (["sample", "x.pt", "--steps", "many"], "--steps"),
        (["train"], "CONFIG"),
    ],
)
def test_mistakes_are_one_line(toy_file, capsys, monkeypatch, arguments, names):
    monkeypatch.chdir(ROOT)
    assert names in refused(capsys, *(a.format(toy=toy_file) for a in arguments))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(toy_file, tmp_path, capsys):
    line = refused(capsys, "train", toy_file, "device=cuda")
    assert "device=cuda: not available here" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--num-samples", "0"], "--num-samples 0: draw at least 1"),
        (["--steps", "0"], "steps=0"),
        (["--guidance", "nan"], "guidance=nan"),
        (["--solver", "rk4"], "euler, heun, midpoint"),
        (["--weights", "raw"], "and ema or model with a checkpoint"),
        (["--prompt", "word " * 65], "takes 64"),
        (["--prompt", "a\udcffb"], "not valid text"),
        (["--prompt", "3", "--prompt", "4", "--num-samples", "1"], "there are 2 prompts"),
        (["--out", "/proc/no"], "can't write to /proc/no"),
        (["--device", "tpu"], "device=tpu"),
    ],
)
def test_sampling_mistakes_are_one_line_and_write_nothing(
    trained, tmp_path, capsys, monkeypatch, options, names
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert names in refused(capsys, "sample", trained, *options)
    assert sorted(tmp_path.rglob("*")) == before


def test_any_prompt_is_drawn_and_stays_a_line(trained, tmp_path):
    """The empty prompt is the null prompt, and bytes speak every language."""
    prompts = ["", "三", "семь", "🙂", "a\nb"]
    options = [part for prompt in prompts for part in ("--prompt", prompt)]
    assert run("sample", trained, *options, "--out", tmp_path) == 0
    listing = (tmp_path / "sample-6-seed0.txt").read_text(encoding="utf-8")
    assert listing.splitlines() == [*prompts[:-1], "a\\nb"]


def test_a_checkpoint_of_another_config_is_named(trained, toy_file, tmp_path, capsys):
    other = tmp_path / "other.yaml"
    other.write_text(toy_file.read_text().replace("depth: 1", "depth: 2"))
    line = refused(capsys, "sample", trained, "--config", other)
    assert "model.depth=2" in line
    assert "diffusion-6.pt was trained with model.depth=1" in line


@pytest.mark.parametrize("command", ["sample", "train"])
@pytest.mark.parametrize("kind", ["truncated", "pickle"])
def test_bad_checkpoints_are_one_line(trained, toy_file, tmp_path, capsys, kind, command):
    marker = tmp_path / "executed"

    class Planted:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    bad = tmp_path / "bad.pt"
    whole = (trained / "diffusion-6.pt").read_bytes()
    bad.write_bytes(whole[: len(whole) // 2] if kind == "truncated" else pickle.dumps(Planted()))
    train = ["train", toy_file, f"output_dir={tmp_path / 'new'}", "--resume", bad]
    assert "bad.pt" in refused(capsys, *(train if command == "train" else ["sample", bad]))
    assert not marker.exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_lessons_two_scripts(toy_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = toy_file.read_text().replace(str(tmp_path), "output/image")
    toy_file.write_text(text)

    def script(path: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(ROOT / path), "--config_path", str(toy_file), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    train, sample = "training/image/mnist/train.py", "sampling/image/mnist/sample.py"
    done = script(train, "--num_training_steps", "4", "--batch_size", "4")
    assert done.returncode == 0, done.stderr
    state = checkpoints.load(tmp_path / "output/image/run/diffusion-4.pt")
    assert state["config"]["train"]["batch_size"] == 4
    done = script(train, "--num_training_steps", "5", "--batch_size", "4", "--resume_from", "auto")
    assert done.returncode == 0, done.stderr
    drawn = script(
        sample, "--num_samples", "3", "--checkpoint", "output/image/run/diffusion-5.pt",
        "--guidance", "1.5", "--sampling_steps", "2",
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    out = tmp_path / "output/image/sample/run"
    assert (out / "sample-5-seed0.png").is_file()
    assert len((out / "sample-5-seed0.txt").read_text().splitlines()) == 3
    assert script(sample, "--checkpoint", "nope.pt").returncode == 2
