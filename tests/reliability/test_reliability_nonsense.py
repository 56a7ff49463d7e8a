"""Nonsense gets a result or one line; never a traceback, never a hang, never more than that."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reliability.kill import board

from fluxsmith import checkpoint as checkpoints
from fluxsmith.cli import main
from fluxsmith.config import read_config, show
from fluxsmith.config.reading import LONGEST, MOST_VALUES
from fluxsmith.data.mnist import read_idx
from fluxsmith.drawing import default_folder
from fluxsmith.errors import UserError
from fluxsmith.nesting import written_out
from fluxsmith.pipeline import Pipeline
from fluxsmith.text.byte_encoder import ByteEncoder
from fluxsmith.training.metrics import read_metrics
from fluxsmith.training.run import train

ROOT = Path(__file__).parents[2]
BASE = "data: {source: digits}\n"
quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.slow
def test_the_fuzzer_finds_nothing():
    """The short form: `python -m tests.reliability.fuzz --inputs 20000` is the long one."""
    command = [sys.executable, "-m", "tests.reliability.fuzz", "--inputs", "300", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failures"] == []
    assert found["inputs"] == sum(found["tried"].values()) == 300
    assert len(found["tried"]) == 17
    assert found["more memory, MiB"] < 1024


def answered(call):
    """A result, or a UserError whose messages are told apart; anything else fails the test."""
    try:
        return call()
    except UserError as error:
        assert error.args
        assert all(str(message) for message in error.args)
        return None


@quick
@given(st.text())
def test_any_text_as_a_config(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    answered(lambda: show(read_config(file)))


@quick
@given(st.binary())
def test_any_bytes_as_a_config(tmp_path, data):
    file = tmp_path / "c.yaml"
    file.write_bytes(data)
    answered(lambda: show(read_config(file)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@quick
@given(
    st.sampled_from(["train.steps", "model", "seed", "data.path", "name", "train.betas", "x.y"]),
    json_values,
)
def test_any_value_for_a_key_either_shows_itself_again_or_is_refused(tmp_path, key, value):
    file, shown = tmp_path / "c.yaml", tmp_path / "shown.yaml"
    file.write_text(BASE)
    config = answered(lambda: read_config(file, [f"{key}={json.dumps(value)}"]))
    if config is not None:
        shown.write_text(show(config), encoding="utf-8")
        assert read_config(shown) == config


@quick
@given(st.text())
def test_any_text_as_an_override(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(BASE)
    answered(lambda: read_config(file, [text]))


@quick
@given(st.binary(), st.sampled_from([1, 3]))
def test_any_bytes_after_an_idx_header(tmp_path, data, dimensions):
    file = tmp_path / "x-idx"
    file.write_bytes(bytes((0, 0, 8, dimensions)) + data)
    found = answered(lambda: read_idx(file, dimensions))
    if found is not None:
        assert found.numel() == len(data) - 4 * dimensions


@quick
@given(st.text())
def test_any_prompt_is_encoded_or_refused(prompt):
    torch.manual_seed(0)
    encoder = ByteEncoder(width=8, hidden_size=64, depth=1, max_tokens=8)

    def encode():
        encoder.check([prompt])
        return encoder([prompt, "seven"])

    found = answered(encode)
    assert found is None or bool(found.pooled.isfinite().all())


def test_a_prompt_of_megabytes_is_refused_at_once():
    encoder = ByteEncoder(width=8, hidden_size=64, depth=0, max_tokens=8)
    for prompt in ("x" * 10**7, " " * 10**7, "é " * 10**6):
        with pytest.raises(UserError, match="takes 8 tokens") as caught:
            encoder.check([prompt])
        assert len(str(caught.value)) < 300


@quick
@given(st.binary())
def test_any_bytes_as_a_checkpoint(tmp_path, data):
    file = tmp_path / "c.pt"
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"c\.pt is not a whole checkpoint"):
        checkpoints.load(file)


def bomb(levels):
    """Lists of the list before, twice: 2^levels values when written out."""
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, levels))]
    return "\n".join([*lines, BASE])


def merge_bomb(levels):
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, levels)]
    return "\n".join([*lines, BASE])


@pytest.mark.parametrize(
    "text",
    [bomb(60), merge_bomb(60), "train: &a {steps: *a}\n" + BASE, "x: " + "[" * 50000, "a" * 300000],
    ids=["lists", "merges", "cycle", "deep", "long"],
)
def test_explosive_yaml_is_refused_at_once(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_config(file)
    message = str(caught.value)
    assert (
        str(MOST_VALUES) in message.replace(",", "")
        or "nested" in message
        or (f"{LONGEST:,}" in message)
    )
    assert len(message.splitlines()) == 1


def test_anchors_that_do_not_explode_are_welcome(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("train: {betas: &b [0.5, 0.75]}\nsample: {guidance_interval: *b}\n" + BASE)
    config = read_config(file)
    assert config.train.betas == config.sample.guidance_interval == [0.5, 0.75]


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mknod [{0}]", "!!python/name:os.mknod", "!!python/module:os"]
)
@pytest.mark.parametrize("where", ["file", "override"])
def test_yaml_tags_build_no_objects(tmp_path, tag, where):
    file, marker = tmp_path / "c.yaml", tmp_path / "executed"
    value = tag.format(marker)
    file.write_text(BASE + (f"name: {value}\n" if where == "file" else ""))
    with pytest.raises(UserError, match="could not determine a constructor"):
        read_config(file, [f"name={value}"] if where == "override" else [])
    assert not marker.exists()


@given(st.integers(0, 30))
def test_written_out_is_the_size_of_a_copy_without_sharing(levels):
    shared: object = [0]
    for _ in range(levels):
        shared = [shared, shared]
    expected = 2 ** (levels + 1) - 1 + 2**levels
    assert written_out(shared, 2**40) == expected


def test_a_name_is_no_path_and_names_no_folder(tmp_path, toy, monkeypatch):
    for name in ("../../x", "a/b", "/etc/x", "a\\b", "a\x1b[2J", "a\nb"):
        with pytest.raises(UserError, match="must be a name, without slashes"):
            toy(f"name={json.dumps(name)}")
    monkeypatch.chdir(tmp_path)
    assert train(toy("name=..", "train.steps=1")) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"toy.yaml", "run"}


@pytest.mark.parametrize("claimed", ["/etc/fluxsmith", "../../x", "a/../../x"])
def test_a_strangers_checkpoint_does_not_decide_where_pictures_go(
    toy, tmp_path, claimed, monkeypatch
):
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
    """Refused from its numbers alone, before any of it is built."""
    assert train(toy("train.steps=1")) == 0
    contents = checkpoints.load(tmp_path / "run" / "diffusion-1.pt")
    contents["config"]["model"] |= {"depth": 1000, "hidden_size": 65536, "num_heads": 1024}
    checkpoints.save(tmp_path / "huge.pt", contents)
    with pytest.raises(UserError, match=r"its config describes 154,[\d,]{15} parameters"):
        Pipeline.from_checkpoint(tmp_path / "huge.pt")


def test_images_too_large_for_the_machine_are_refused_before_they_are_made(toy):
    with pytest.raises(UserError, match=r"data.image_size=16384: 1,415 images of that size take"):
        train(toy("data.image_size=16384", "model.patch_size=16384"))


def test_a_gzip_bomb_takes_no_more_than_a_file_may(tmp_path):
    """A gigabyte of zeros in a megabyte."""
    import gzip
    import resource

    file = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(file, "wb", compresslevel=1) as stream:
        stream.write(bytes((0, 0, 8, 3)) + b"\xff" * 12)
        for _ in range(10):
            stream.write(bytes(10**8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="unpacks to more than 268,435,456 bytes"):
        read_idx(file, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000  # KiB


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "a\x1b[2J\nb"],
        ["sample", "x" * 5000],
        ["train", "c\udcff.yaml"],
        ["train", "x" * 300 + ".yaml"],
        ["sample", "x.pt", "--solver", "a\nb"],
        ["--\x07"],
    ],
)
def test_what_a_terminal_would_act_upon_is_shown_as_an_escape(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed[:-1].isprintable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX shell")
def test_output_cut_short_is_no_error(toy_file):
    """`fluxsmith config show | head -1`"""
    command = f"{sys.executable} -m fluxsmith config schema | head -c 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout == "{"
    assert done.stderr == ""


def test_names_that_the_output_can_not_encode_are_printed_all_the_same(toy, tmp_path):
    assert train(toy("train.steps=1")) == 0
    out = tmp_path / os.fsdecode(b"\xff")
    command = [sys.executable, "-m", "fluxsmith", "sample", str(tmp_path / "run"), "--prompt", "3"]
    done = subprocess.run(
        [*command, "--out", out], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "\\udcff" in done.stdout


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
    records = read_metrics(folder / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6, 7, 8]
    found = board(folder)
    assert [step for step, tag in found if tag == "train/loss"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [step for step, tag in found if tag == "samples"] == [4, 6]


def test_fuzzing_is_repeatable(tmp_path):
    import random

    from reliability import nonsense

    def some():
        draw = random.Random("1/2")
        return [nonsense.document(draw) for _ in range(5)] + [nonsense.mangled(draw, bytes(100))]

    assert some() == some()
