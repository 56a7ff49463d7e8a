"""Out, and in again: the same bytes, the same pictures, in others' programs too."""

import json
import re
from pathlib import Path

import pytest
import torch
from helpers import assert_agree, randomise, same
from safetensors import safe_open
from tiny_autoencoder import save_autoencoder

from fluxsmith import Pipeline
from fluxsmith.cli import main
from fluxsmith.config import show
from fluxsmith.errors import UserError
from fluxsmith.interop.exporting import export
from fluxsmith.interop.importing import contents, import_model
from fluxsmith.interop.open_pipeline import load_initial
from fluxsmith.interop.read_weights import Weights, read_weights
from fluxsmith.randomness import image_noise
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.tensor_files import write_tensors
from fluxsmith.training.run import build_trainer, train


def save_checkpoint(path, pipeline, step=7):
    """A checkpoint of this very model, as a run would write it."""
    own = pipeline.state_dict()
    weights = Weights(
        "fluxsmith",
        str(path),
        {n.removeprefix("network."): t for n, t in own.items() if n.startswith("network.")},
        text={n.removeprefix("text."): t for n, t in own.items() if n.startswith("text.")},
        step=step,
        metadata={"captions": ["3", "three", "7"], "autoencoder": pipeline.autoencoder.digest},
    )
    checkpoints.save(path, contents(weights, pipeline.config))
    return path


@pytest.fixture
def checkpoint(pipeline, tmp_path):
    return save_checkpoint(tmp_path / "diffusion-7.pt", pipeline)


@pytest.fixture
def latent_checkpoint(toy, tmp_path):
    weights = save_autoencoder(tmp_path / "ae.safetensors")
    settings = ("data.channels=3", "autoencoder.kind=flux", f"autoencoder.weights={weights}")
    config = toy(*settings, "model.patch_size=2", "sample.schedule=flux")
    return save_checkpoint(tmp_path / "diffusion-7.pt", randomise(Pipeline.build(config)).eval())


def data_section(path):
    """The bytes of a safetensors file behind its header: every tensor's, in the file's order."""
    raw = path.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


def run_export(checkpoint, out, form="bfl", **options):
    return export(checkpoint, out, form, **{"samples": False, **options})


@pytest.mark.parametrize("form", ["bfl", "diffusers"])
@pytest.mark.parametrize("kind", ["checkpoint", "latent_checkpoint"])
def test_export_then_import_gives_the_model_back(request, tmp_path, kind, form):
    before = request.getfixturevalue(kind)
    out = tmp_path / ("model.safetensors" if form == "bfl" else "model")
    run_export(before, out, form)
    import_model(out, tmp_path / "back.pt")
    one, two = (Pipeline.from_checkpoint(p, "cpu") for p in (before, tmp_path / "back.pt"))
    assert same(dict(one.state_dict()), dict(two.state_dict()))
    assert one.digest() == two.digest()
    assert (one.step, one.captions) == (two.step, two.captions)
    drawn = [Sampler(p).generate(["3", "seven"], steps=2, guidance=2, seed=1) for p in (one, two)]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("form", ["bfl", "diffusers"])
@pytest.mark.parametrize("kind", ["checkpoint", "latent_checkpoint"])
def test_an_export_in_any_dtype_is_imported_and_drawn_with(request, tmp_path, kind, form, dtype):
    """In fp8 are the network's matrices alone."""
    out = tmp_path / ("model.safetensors" if form == "bfl" else "model")
    run_export(request.getfixturevalue(kind), out, form, dtype=dtype)
    plain = torch.bfloat16 if "float8" in dtype else getattr(torch, dtype)
    assert {t.dtype for t in read_weights(out).text.values()} == {plain}
    import_model(out, tmp_path / "back.pt")
    pipeline = Pipeline.from_checkpoint(tmp_path / "back.pt", "cpu")
    assert Sampler(pipeline).generate(["3"], steps=1).isfinite().all()


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("form", ["bfl", "diffusers"])
def test_import_then_export_gives_the_same_bytes(checkpoint, tmp_path, form, dtype):
    names = ("one.safetensors", "two.safetensors") if form == "bfl" else ("one", "two")
    one, two = (tmp_path / name for name in names)
    inside = "" if form == "bfl" else "transformer/diffusion_pytorch_model.safetensors"
    run_export(checkpoint, one, form, dtype=dtype)
    import_model(one, tmp_path / "between.pt")
    run_export(tmp_path / "between.pt", two, form)
    section = data_section(one / inside if inside else one)
    assert section == data_section(two / inside if inside else two)
    assert len(section) > 100_000


def test_weights_in_fp8_are_drawn_with_and_go_out_as_they_came(checkpoint, tmp_path):
    fp8 = torch.float8_e4m3fn
    weights = read_weights(checkpoint).network
    run_export(checkpoint, tmp_path / "m.safetensors")  # leaves the text encoder beside it
    write_tensors(tmp_path / "m.safetensors", {n: t.to(fp8) for n, t in weights.items()}, {})
    config = Pipeline.from_checkpoint(checkpoint, "cpu").config
    (tmp_path / "c.yaml").write_text(show(config))
    import_model(tmp_path / "m.safetensors", tmp_path / "fp8.pt", tmp_path / "c.yaml")
    pipeline = Pipeline.from_checkpoint(tmp_path / "fp8.pt", "cpu")
    assert pipeline.network.img_in.weight.dtype == torch.bfloat16
    assert Sampler(pipeline).generate(["3"], steps=1).isfinite().all()
    run_export(tmp_path / "fp8.pt", tmp_path / "fp8.safetensors")
    assert data_section(tmp_path / "fp8.safetensors") == data_section(tmp_path / "m.safetensors")


def test_a_bfl_file_has_bfls_keys_and_opens_anywhere(checkpoint, tmp_path):
    run_export(checkpoint, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        names = set(file.keys())
        config = json.loads(file.metadata()["fluxsmith"])["config"]
    network = Pipeline.from_checkpoint(checkpoint, "cpu").network
    assert names == network.state_dict().keys()
    assert "double_blocks.0.img_attn.norm.query_norm.scale" in names
    assert config["model"]["patch_size"] == 4


@pytest.mark.parametrize(("channels", "predicts"), [(1, "velocity"), (3, "velocity"), (1, "data")])
def test_the_lines_in_the_docs_draw_the_same_from_the_same_noise(toy, tmp_path, channels, predicts):
    """As they stand there, but for the folder, the sizes, the noise and what is predicted."""
    pytest.importorskip("diffusers")
    config = toy(f"data.channels={channels}", f"flow.prediction={predicts}")
    pipeline = randomise(Pipeline.build(config).eval())
    checkpoint = save_checkpoint(tmp_path / "diffusion-7.pt", pipeline)
    run_export(checkpoint, tmp_path / "model", "diffusers")
    page = (Path(__file__).parents[2] / "docs" / "interop.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    code = next(block for block in blocks if "FluxTransformer2DModel" in block)
    for before, after in (
        ('"FOLDER", "seven", 2.0, 20', f'"{tmp_path / "model"}", "three", 3.0, 4'),
        ("= 1, 32, 8 ", f"= {channels}, 16, 4 "),
        ("noise = torch.randn(", "noise = given; _ = torch.randn("),
        ("predicts_data = False", f"predicts_data = {predicts == 'data'}"),
    ):
        assert before in code
        code = code.replace(before, after)
    assert "fluxsmith" not in code.replace(str(tmp_path), "")
    found = {"given": image_noise((channels, 16, 16), 5, range(1))}
    exec(code, found)
    expected = Sampler(pipeline).generate(["three"], steps=4, guidance=3.0, seed=5)
    assert_agree(found["image"], expected, within=1e-4)


def test_ema_or_raw_weights_as_asked(checkpoint, tmp_path):
    state = checkpoints.load(checkpoint)
    state["model"] = {name: t + 1 for name, t in state["model"].items()}
    path = tmp_path / "diffusion-8.pt"
    checkpoints.save(path, state)
    for weights in ("ema", "model"):
        run_export(path, tmp_path / f"{weights}.safetensors", weights=weights)
        read = read_weights(tmp_path / f"{weights}.safetensors").network
        expected = state[weights]["network.img_in.weight"]
        assert torch.equal(read["img_in.weight"], expected)


def test_the_card_tells_what_it_is_and_shows_it(checkpoint, tmp_path):
    scores = tmp_path / "scores.json"
    digest = Pipeline.from_checkpoint(checkpoint, "cpu").digest()
    rows = [["Prompt accuracy", "98.5% (97.0% to 99.0%)"]]
    scores.write_text(json.dumps({"model": digest, "table": rows, "settings": {"steps": 20}}))
    run_export(checkpoint, tmp_path / "model", "diffusers", scores=scores, samples=True)
    card = (tmp_path / "model" / "README.md").read_text()
    score = "| Prompt accuracy | 98.5% (97.0% to 99.0%) |"
    for part in ("for 7 steps of 8 images", score, "samples.png", "source: digits"):
        assert part in card, part
    assert (tmp_path / "model" / "samples.png").stat().st_size > 1000

    scores.write_text(json.dumps({"model": "another", "table": []}))
    with pytest.raises(UserError, match="evaluation of other weights"):
        run_export(checkpoint, tmp_path / "other", "diffusers", scores=scores)
    assert not (tmp_path / "other").exists()


def test_what_is_there_already_is_not_written_over(checkpoint, tmp_path):
    run_export(checkpoint, tmp_path / "model", "diffusers")
    with pytest.raises(UserError, match="is there already"):
        run_export(checkpoint, tmp_path / "model", "diffusers")
    with pytest.raises(UserError, match="is there already"):
        import_model(tmp_path / "model", checkpoint)
    assert not list(tmp_path.glob(".*"))
    run_export(checkpoint, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is there already"):
        run_export(checkpoint, tmp_path / "model.safetensors")


def test_an_export_goes_where_a_link_or_the_folder_itself_leads(checkpoint, tmp_path, monkeypatch):
    for name in ("one", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "one")
    run_export(checkpoint, tmp_path / "link", "diffusers")
    assert (tmp_path / "one" / "README.md").is_file()
    monkeypatch.chdir(tmp_path / "here")
    run_export(checkpoint, Path(), "diffusers")
    assert (tmp_path / "here" / "README.md").is_file()


def test_a_config_that_is_not_the_exports_own_is_refused(toy, toy_file, tmp_path):
    config = toy("flow.prediction=data")
    checkpoint = save_checkpoint(tmp_path / "diffusion-7.pt", Pipeline.build(config))
    run_export(checkpoint, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"flow\.prediction=velocity: .* was trained with data"):
        import_model(tmp_path / "m.safetensors", tmp_path / "back.pt", toy_file)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("model.mlp_ratio=3",), r"model\.mlp_ratio=3\.0: diffusers' Flux knows mlp_ratio=4\.0"),
        (("model.theta=100",), r"model\.theta=100\.0: .*--format bfl"),
        (("model.qkv_bias=false",), r"model\.qkv_bias=False"),
    ],
)
def test_what_diffusers_can_not_express_is_named(toy, tmp_path, settings, said):
    checkpoint = save_checkpoint(tmp_path / "diffusion-7.pt", Pipeline.build(toy(*settings)))
    with pytest.raises(UserError, match=said):
        run_export(checkpoint, tmp_path / "model", "diffusers")
    assert not (tmp_path / "model").exists()
    run_export(checkpoint, tmp_path / "model.safetensors", "bfl")
    import_model(tmp_path / "model.safetensors", tmp_path / "back.pt")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model", "--format", "bfl"], "let its name end with .safetensors"),
        (["model", "--format", "onnx"], "--format onnx: must be one of bfl, diffusers"),
        (["m.safetensors", "--format", "bfl", "--scores", "x.json"], "goes into the model card"),
        (["model", "--format", "diffusers", "--weights", "best"], "weights=best"),
    ],
)
def test_mistakes_of_the_command_are_one_line(checkpoint, tmp_path, capsys, arguments, said):
    out, *rest = arguments
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(checkpoint), str(tmp_path / out), *rest])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_commands_say_what_they_wrote(checkpoint, tmp_path, capsys):
    for arguments in (
        ["export", checkpoint, tmp_path / "m", "--format", "diffusers", "--no-samples"],
        ["import", tmp_path / "m", tmp_path / "back.pt"],
        ["sample", tmp_path / "back.pt", "--prompt", "3", "--steps", 1, "--out", tmp_path],
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*map(str, arguments)])
        assert not stopped.value.code, capsys.readouterr().err
    said = capsys.readouterr().out
    for part in ("transformer", "README.md", "read        diffusers", "back.pt", "peak memory"):
        assert part in said, part


def test_an_imported_checkpoint_can_not_be_resumed_but_started_from(checkpoint, toy, tmp_path):
    with pytest.raises(UserError, match=r"no training state.*train\.init_from"):
        train(toy("train.steps=9"), resume=str(checkpoint))


@pytest.mark.parametrize("form", ["checkpoint", "bfl", "diffusers"])
def test_training_starts_from_weights_of_any_form(checkpoint, toy, tmp_path, form):
    path = {"checkpoint": checkpoint, "bfl": tmp_path / "m.safetensors"}.get(form, tmp_path / "m")
    if form != "checkpoint":
        run_export(checkpoint, path, form)
    trainer = build_trainer(toy(f"train.init_from={path}"), torch.device("cpu"))
    expected = Pipeline.from_checkpoint(checkpoint, "cpu").state_dict()
    assert same(dict(trainer.pipeline.state_dict()), dict(expected))
    assert same(trainer.ema.weights, dict(expected))
    trainer.train_step()
    assert not same(dict(trainer.pipeline.state_dict()), dict(expected))
    again = Pipeline.from_checkpoint(checkpoint, "cpu").state_dict()
    assert same(dict(again), dict(expected))  # the file was not written to


def test_weights_to_start_from_predict_what_the_config_says(toy, tmp_path):
    data = toy("flow.prediction=data")
    saved = save_checkpoint(tmp_path / "diffusion-7.pt", randomise(Pipeline.build(data)))
    load_initial(Pipeline.build(data), str(saved))
    with pytest.raises(UserError, match=r"predicts the data; set flow.prediction=data"):
        load_initial(Pipeline.build(toy()), str(saved))


def test_weights_to_start_from_must_fit_and_exclude_a_fork(checkpoint, toy):
    config = toy(f"train.init_from={checkpoint}", "model.depth=2")
    with pytest.raises(UserError, match=r"doesn't fit this model.*made with depth 1, here 2"):
        build_trainer(config, torch.device("cpu"))
    with pytest.raises(UserError, match=r"--fork and train\.init_from contradict"):
        train(toy(f"train.init_from={checkpoint}"), fork=checkpoint)
