"""Out, and in again: the same bytes, the same pictures, in others' programs too."""

import json
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from helpers import assert_agree, same
from interop_models import data_section, moved
from safetensors import safe_open
from tiny_autoencoder import save_autoencoder

from fluxsmith import Pipeline
from fluxsmith import checkpoint as checkpoints
from fluxsmith.cli import main
from fluxsmith.config import show
from fluxsmith.errors import UserError
from fluxsmith.interop.exporting import export
from fluxsmith.interop.importing import contents, import_model
from fluxsmith.interop.reading import Weights, read_weights
from fluxsmith.model.tokens import image_ids, patchify, text_ids, unpatchify
from fluxsmith.randomness import image_noise
from fluxsmith.tensorfile import write_tensors


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
    return save_checkpoint(tmp_path / "diffusion-7.pt", moved(Pipeline.build(config)))


def run_export(checkpoint, out, form="bfl", dtype=None, weights="ema", scores=None, samples=False):
    return export(
        checkpoint, out, form, weights=weights, dtype=dtype, scores=scores, samples=samples
    )


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
    drawn = [p.generate(["3", "seven"], steps=2, guidance=2, seed=1) for p in (one, two)]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("form", ["bfl", "diffusers"])
def test_import_then_export_gives_the_same_bytes(checkpoint, tmp_path, form, dtype):
    names = ("one.safetensors", "two.safetensors") if form == "bfl" else ("one", "two")
    one, two = (tmp_path / name for name in names)
    inside = "" if form == "bfl" else "transformer/diffusion_pytorch_model.safetensors"
    run_export(checkpoint, one, form, dtype)
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
    assert pipeline.generate(["3"], steps=1).isfinite().all()
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


def lines_of_the_docs() -> str:
    """The code of docs/interop.md that draws with diffusers alone."""
    page = (Path(__file__).parents[2] / "docs" / "interop.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    return next(block for block in blocks if "FluxTransformer2DModel" in block)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_lines_in_the_docs_draw_the_same_from_the_same_noise(toy, tmp_path, channels):
    """As they stand there, but for the folder, the sizes and the noise."""
    pytest.importorskip("diffusers")
    pipeline = moved(Pipeline.build(toy(f"data.channels={channels}")))
    checkpoint = save_checkpoint(tmp_path / "diffusion-7.pt", pipeline)
    run_export(checkpoint, tmp_path / "model", "diffusers")
    code = lines_of_the_docs()
    for before, after in (
        ('"FOLDER", "seven", 2.0, 20', f'"{tmp_path / "model"}", "three", 3.0, 4'),
        ("= 1, 32, 8 ", f"= {channels}, 16, 4 "),
        ("noise = torch.randn(", "noise = given; _ = torch.randn("),
    ):
        assert before in code
        code = code.replace(before, after)
    assert "fluxsmith" not in code.replace(str(tmp_path), "")
    found = {"given": image_noise((channels, 16, 16), 5, range(1))}
    exec(code, found)
    expected = pipeline.generate(["three"], steps=4, guidance=3.0, seed=5)
    assert_agree(found["image"], expected, within=1e-4)


@torch.no_grad()
def test_a_guidance_input_goes_out_too(toy, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    pipeline = moved(Pipeline.build(toy("model.guidance_embed=true")))
    checkpoint = save_checkpoint(tmp_path / "diffusion-7.pt", pipeline)
    run_export(checkpoint, tmp_path / "model", "diffusers")
    folder = tmp_path / "model" / "transformer"
    transformer = diffusers.FluxTransformer2DModel.from_pretrained(folder)
    x, t = image_noise((1, 16, 16), 5, range(1)), torch.tensor(0.7)
    cond = pipeline.encode_text(["three"])
    v = transformer(
        hidden_states=patchify(x, 4),
        encoder_hidden_states=cond.tokens,
        pooled_projections=cond.pooled,
        timestep=t[None],
        guidance=torch.tensor([3.0]),
        img_ids=image_ids(4, 4, x.device),
        txt_ids=text_ids(cond.tokens.shape[1], x.device),
    ).sample
    expected = pipeline.velocity(x, t, cond, guidance=3.0)
    assert_agree(unpatchify(v, 4, 16, 16), expected, within=1e-4)


def test_the_scheduler_is_that_of_the_config(latent_checkpoint, tmp_path):
    """diffusers' own, at the number of tokens at hand: the times that our schedule gives."""
    diffusers = pytest.importorskip("diffusers")
    from fluxsmith.flow.schedule import flux_grid, flux_mu

    run_export(latent_checkpoint, tmp_path / "model", "diffusers")
    folder = tmp_path / "model" / "scheduler"
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder)
    for tokens in (256, 1000, 4096):
        scheduler.set_timesteps(sigmas=[1 - i / 5 for i in range(5)], mu=flux_mu(tokens))
        torch.testing.assert_close(scheduler.sigmas, flux_grid(5, tokens), rtol=0, atol=1e-6)


def test_an_exported_autoencoder_is_diffusers_own(latent_checkpoint, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    run_export(latent_checkpoint, tmp_path / "model", "diffusers")
    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "model" / "vae").eval()
    autoencoder = Pipeline.from_checkpoint(latent_checkpoint, "cpu").autoencoder
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = latents / vae.config.scaling_factor + vae.config.shift_factor
        expected = vae.decode(z).sample
    assert_agree(autoencoder.decode(latents), expected, within=1e-4)


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
    results = {"prompt_accuracy": {"accuracy": 0.985, "interval": [0.97, 0.99]}}
    scores.write_text(json.dumps({"model": digest, "results": results, "settings": {"steps": 20}}))
    run_export(checkpoint, tmp_path / "model", "diffusers", scores=scores, samples=True)
    card = (tmp_path / "model" / "README.md").read_text()
    for part in (
        "library_name: diffusers",
        "for 7 steps of 8 images",
        "| prompt_accuracy.accuracy | 0.985 |",
        "samples.png",
        "source: digits",
    ):
        assert part in card, part
    assert (tmp_path / "model" / "samples.png").stat().st_size > 1000

    scores.write_text(json.dumps({"model": "another", "results": {}}))
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
        (["model", "--format", "diffusers", "--dtype", "int8"], "--dtype int8: must be one of"),
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
        ["export", str(checkpoint), str(tmp_path / "m"), "--format", "diffusers", "--no-samples"],
        ["import", str(tmp_path / "m"), str(tmp_path / "back.pt")],
        ["sample", str(tmp_path / "back.pt"), "--prompt", "3", "--steps", "1",
         "--out", str(tmp_path / "drawn")],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert not stopped.value.code, capsys.readouterr().err
    said = capsys.readouterr().out
    for part in ("transformer", "README.md", "read        diffusers", "back.pt", "peak memory"):
        assert part in said, part


def test_an_imported_checkpoint_can_not_be_resumed_but_started_from(checkpoint, toy, tmp_path):
    from fluxsmith.training.run import train

    with pytest.raises(UserError, match=r"no training state.*train\.init_from"):
        train(toy("train.steps=9"), resume=str(checkpoint))


@pytest.mark.parametrize("form", ["checkpoint", "bfl", "diffusers"])
def test_training_starts_from_weights_of_any_form(checkpoint, toy, tmp_path, form):
    from fluxsmith.training.run import build_trainer

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


def test_starting_from_weights_that_do_not_fit_is_named(checkpoint, toy, tmp_path):
    from fluxsmith.training.run import build_trainer

    config = toy(f"train.init_from={checkpoint}", "model.depth=2")
    with pytest.raises(UserError, match=r"doesn't fit this model.*made with depth 1, here 2"):
        build_trainer(config, torch.device("cpu"))


def test_a_fork_and_weights_to_start_from_contradict_each_other(checkpoint, toy):
    from fluxsmith.training.run import train

    with pytest.raises(UserError, match=r"--fork and train\.init_from contradict"):
        train(toy(f"train.init_from={checkpoint}"), fork=checkpoint)


def test_a_checkpoint_whose_tensors_lie_in_an_ordered_mapping_opens(checkpoint, tmp_path):
    """As a module's own state_dict is, and as runs have saved it."""
    state = checkpoints.load(checkpoint)
    state["model"] = OrderedDict(state["model"])
    checkpoints.save(tmp_path / "diffusion-9.pt", state)
    assert Pipeline.from_checkpoint(tmp_path / "diffusion-9.pt", "cpu", "model").step == 7
