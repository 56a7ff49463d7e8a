"""LoRAs merged into models and found between them, and what a LoRA is said to be."""

import json

import pytest
import torch
from flux_at_random import flux_at_random
from helpers import assert_agree, randomise
from safetensors.torch import load_file
from test_exporting import save_checkpoint
from test_lora_formats import PARAMS, random_changes, whole

from fluxsmith import Pipeline
from fluxsmith.cli import main
from fluxsmith.errors import UserError
from fluxsmith.interop.importing import import_model
from fluxsmith.interop.lora_files import read_lora, write_lora
from fluxsmith.interop.lora_tools import describe, extract, merge
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.tensor_files import read_metadata, write_tensors


@pytest.fixture
def model(tmp_path):
    """BFL's file of a tiny network."""
    write_tensors(tmp_path / "model.safetensors", flux_at_random(PARAMS).state_dict(), {})
    return tmp_path / "model.safetensors"


@pytest.fixture
def lora(tmp_path):
    write_lora(tmp_path / "lora.safetensors", random_changes(rank=2), "kohya")
    return tmp_path / "lora.safetensors"


def changed(before, after):
    """What differs between two files."""
    old, new = load_file(before), load_file(after)
    assert old.keys() == new.keys()
    found = {name: new[name].float() - old[name].float() for name in new}
    return {name: difference for name, difference in found.items() if difference.any()}


def test_merging_adds_the_changes_times_their_weights(model, lora, tmp_path):
    out = tmp_path / "out.safetensors"
    assert merge(model, [f"{lora}:0.5", f"{lora}:0.25"], out, None) == [out]
    found, expected = changed(model, out), whole(random_changes(rank=2))
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        assert_agree(found[name], 0.75 * change, within=1e-6)


def test_merging_keeps_what_the_model_says_of_itself(model, lora, tmp_path):
    spec = {"modelspec.title": "Foxes", "modelspec.license": "mit"}
    write_tensors(model, load_file(model), spec | {"modelspec.hash_sha256": "0x12"})
    merge(model, [str(lora)], tmp_path / "out.safetensors", None)
    assert read_metadata(tmp_path / "out.safetensors") == {"format": "pt", **spec}


def test_a_merged_model_of_ours_names_no_path_and_keeps_its_dtype(lora, toy, tmp_path):
    pipeline = randomise(Pipeline.build(toy())).eval()
    base = save_checkpoint(tmp_path / "base.pt", pipeline)
    write_lora(lora, random_changes(pipeline.network.params, rank=2), "kohya")
    small = checkpoints.without_training(checkpoints.load(base), torch.float16)
    checkpoints.save(tmp_path / "small.pt", small)
    out = tmp_path / "out.safetensors"
    merge(tmp_path / "small.pt", [str(lora)], out, torch.bfloat16)
    assert str(tmp_path) not in str(read_metadata(out))
    import_model(out, tmp_path / "back.pt")
    assert {t.dtype for t in checkpoints.load(tmp_path / "back.pt")["ema"].values()} == {
        torch.bfloat16
    }


def test_merging_rounds_once_to_the_dtype_and_never_into_float8(model, lora, tmp_path):
    out = tmp_path / "out.safetensors"
    merge(model, [str(lora)], out, torch.bfloat16)
    exact = tmp_path / "exact.safetensors"
    merge(model, [str(lora)], exact, None)
    exact = load_file(exact)
    assert all(torch.equal(t, exact[n].to(torch.bfloat16)) for n, t in load_file(out).items())

    eighth = {n: t.to(torch.float8_e4m3fn) for n, t in load_file(model).items()}
    write_tensors(tmp_path / "fp8.safetensors", eighth, {})
    with pytest.raises(UserError, match=r"float8_e4m3fn.*give --dtype bfloat16"):
        merge(tmp_path / "fp8.safetensors", [str(lora)], tmp_path / "no.safetensors", None)
    assert not (tmp_path / "no.safetensors").exists()
    out = tmp_path / "from-fp8.safetensors"
    merge(tmp_path / "fp8.safetensors", [str(lora)], out, torch.bfloat16)
    assert {t.dtype for t in load_file(out).values()} == {torch.bfloat16}


def test_extracting_finds_the_lora_that_was_merged(model, lora, tmp_path):
    """Rank 2 holds all of it; rank 1 the most that it can."""
    merge(model, [str(lora)], tmp_path / "out.safetensors", None)
    found = tmp_path / "found.safetensors"
    held = extract(model, tmp_path / "out.safetensors", found, 2, "diffusers", None)
    assert held == pytest.approx(1, abs=1e-5)
    found, expected = whole(read_lora(found).changes), whole(random_changes(rank=2))
    for name, change in expected.items():
        assert_agree(found[name], change, within=1e-5)
    one = extract(model, tmp_path / "out.safetensors", tmp_path / "1.safetensors", 1, "bfl", None)
    best = [torch.linalg.svdvals(change).square() for change in expected.values()]
    assert one == pytest.approx(
        float(sum(s[0] for s in best) / sum(s.sum() for s in best)), rel=1e-4
    )


def test_models_that_do_other_things_have_no_lora_between_them(toy, tmp_path):
    before = save_checkpoint(tmp_path / "a.pt", randomise(Pipeline.build(toy())))
    state = checkpoints.load(before)
    for section, key in (("flow", "prediction"), ("model", "conditioning")):
        other = {"prediction": "data", "conditioning": "kontext"}[key]
        config = {**state["config"], section: {**state["config"][section], key: other}}
        checkpoints.save(tmp_path / "c.pt", state | {"config": config})
        with pytest.raises(UserError, match=f"its {key} is {other}, and was"):
            extract(before, tmp_path / "c.pt", tmp_path / "no.safetensors", 4, "bfl", None)


def test_another_text_encoder_is_said_and_counted(toy, tmp_path, caplog):
    before = save_checkpoint(tmp_path / "a.pt", randomise(Pipeline.build(toy())))
    state, held = checkpoints.load(before), []
    for moved in (0.0, 0.1):
        ema = {
            name: t + moved if name.startswith("text.") else 1.5 * t
            for name, t in state["ema"].items()
        }
        checkpoints.save(tmp_path / "b.pt", state | {"ema": ema})
        out = tmp_path / f"{moved}.safetensors"
        held += [extract(before, tmp_path / "b.pt", out, 4, "bfl", None)]
        assert ("has another text encoder" in caplog.text) == bool(moved)
    assert held[1] < held[0]


def test_numbers_that_are_not_finite_have_no_difference(model, tmp_path):
    other = load_file(model)
    other["img_in.weight"][0, 0] = torch.nan
    write_tensors(tmp_path / "other.safetensors", other, {})
    with pytest.raises(UserError, match=r"img_in\.weight of .* not finite"):
        extract(model, tmp_path / "other.safetensors", tmp_path / "a.safetensors", 4, "kohya", None)


def test_models_that_are_the_same_or_another_have_no_lora_between_them(model, tmp_path):
    with pytest.raises(UserError, match="have the same weights"):
        extract(model, model, tmp_path / "a.safetensors", 4, "kohya", None)
    fewer = {n: t for n, t in load_file(model).items() if not n.startswith("single_blocks.2")}
    write_tensors(tmp_path / "fewer.safetensors", fewer, {})
    with pytest.raises(UserError, match=r"single_blocks\.2\..* is not there, and was \("):
        extract(model, tmp_path / "fewer.safetensors", tmp_path / "a.safetensors", 4, "kohya", None)


def test_no_file_is_written_over(model, lora, tmp_path):
    with pytest.raises(UserError, match="is there already"):
        merge(model, [str(lora)], model, None)
    with pytest.raises(UserError, match="is there already"):
        extract(model, model, lora, 4, "kohya", None)


def test_what_a_lora_is_said_to_be(lora, tmp_path):
    tags = json.dumps({"10_ink": {"ink drawing": 50, "a cat": 3}})
    write_lora(lora, random_changes(rank=2), "comfyui", {"ss_tag_frequency": tags})
    told = dict(describe(read_lora(lora)))
    assert told["format"] == "comfyui" and told["rank"] == "2" and told["alpha / rank"] == "1"
    assert told["trigger words"] == "ink drawing, a cat"
    assert "left out" not in told
    text = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0)}
    write_tensors(lora, load_file(lora) | text, {})
    told = dict(describe(read_lora(lora, without_text=True)))
    assert told["left out"].startswith("1 tensors of text encoders, for which sample refuses it")
    block = [
        c.norm() ** 2 for c in random_changes(rank=2) if c.layer.startswith("single_blocks.1.")
    ]
    assert float(told["norm of single_blocks.1"]) == pytest.approx(sum(block) ** 0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("lora show {}/none.safetensors", "there are no weights at"),
        ("lora merge {0}/model.safetensors {0}/out.safetensors", "give --lora FILE"),
        ("lora merge {0}/model.safetensors {0}/out.pt --lora {0}/lora.safetensors", "is one file"),
        ("lora convert {0}/lora.safetensors {0}/out.safetensors --format peft", "must be one of"),
        ("lora convert {0}/lora.safetensors {0}/out --format bfl", "end with .safetensors"),
        ("lora convert {0}/model.safetensors {0}/out.safetensors", "it is a whole network"),
        (
            "lora merge {0}/lora.safetensors {0}/o.safetensors --lora {0}/lora.safetensors",
            "is a LoRA",
        ),
        ("lora convert {0}/lora.safetensors {0}/out.safetensors --dtype int8", "--dtype int8"),
    ],
)
def test_mistakes_are_one_line(model, lora, tmp_path, capsys, command, says):
    with pytest.raises(SystemExit) as ended:
        main(command.format(tmp_path).split())
    line = capsys.readouterr().err
    assert ended.value.code == 2 and says in line and line.count("\n") == 1
