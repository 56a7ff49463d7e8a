"""Released weights under a config: what is loaded, in which dtype, and what is said of mistakes."""

import pytest
import torch
from interop_models import moved
from PIL import Image
from test_exporting import save_checkpoint
from tiny_autoencoder import save_autoencoder

from fluxsmith import Pipeline
from fluxsmith.cli import main
from fluxsmith.errors import UserError
from fluxsmith.interop.exporting import export
from fluxsmith.interop.opening import open_pipeline
from fluxsmith.interop.released import load_released
from fluxsmith.tensorfile import write_tensors


@pytest.fixture
def files(toy_file, pipeline, tmp_path):
    """(config file, weights file) of the toy model; its learned text encoder lies beside."""
    checkpoint = save_checkpoint(tmp_path / "diffusion-7.pt", pipeline)
    export(checkpoint, tmp_path / "flux.safetensors", "bfl")
    return toy_file, tmp_path / "flux.safetensors"


def in_dtype(path, pipeline, dtype):
    """The same weights in another dtype, without the notes that an export carries."""
    write_tensors(path, {n: t.to(dtype) for n, t in pipeline.network.state_dict().items()}, {})
    write_tensors(path.with_suffix(".text.safetensors"), pipeline.text.state_dict(), {})
    return path


def assert_equal(one, two):
    """But for the last bits: where a tensor lies in a mapped file can change a sum's order."""
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def loaded_from(config, weights, **options):
    return load_released(config, weights, lambda _: ["3"], device="cpu", **options)


def drawn(pipeline):
    return pipeline.generate(["3", "seven"], steps=2, guidance=2, seed=1)


def test_a_config_and_weights_are_the_model(toy, files, pipeline):
    loaded = loaded_from(toy(), files[1])
    assert_equal(drawn(loaded), drawn(pipeline))


@pytest.mark.parametrize(
    ("stored", "asked", "computed"),
    [
        (torch.bfloat16, None, torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.float8_e4m3fn, None, torch.bfloat16),
        (torch.float8_e4m3fn, "float32", torch.float32),
    ],
)
def test_the_dtype_is_the_files_own_or_the_one_asked_for(
    toy, tmp_path, pipeline, stored, asked, computed
):
    path = in_dtype(tmp_path / "m.safetensors", pipeline, stored)
    loaded = loaded_from(toy(), path, dtype=asked)
    assert {p.dtype for p in loaded.network.parameters()} == {computed}
    coarse = moved(Pipeline.build(toy()))
    coarse.network.to(stored).to(computed)
    assert_equal(drawn(loaded), drawn(coarse))
    streamed = loaded_from(toy(), path, dtype=asked, offload="blocks")
    assert_equal(drawn(streamed), drawn(coarse))


def run(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["sample", *map(str, arguments)])
    return stopped.value.code or 0


def metadata(path):
    return Image.open(path).text


def test_the_command_draws_and_says_how_to_draw_it_again(files, tmp_path, capsys):
    config, weights = files
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "from.png")
    Image.new("L", (40, 30), 255).save(tmp_path / "mask.png")
    out = tmp_path / "drawn"
    arguments = [
        config, "--weights", weights, "--prompt", "three", "--steps", 2, "--height", 24, "--width",
        32, "--init-image", tmp_path / "from.png", "--mask", tmp_path / "mask.png", "--strength",
        0.9, "--dtype", "float32", "--batch-size", 1, "--out", out,
    ]  # fmt: skip
    assert run(arguments) == 0, capsys.readouterr().err
    picture = Image.open(out / "sample-7-seed0" / "0000.png")
    assert picture.size == (32, 24)
    command = metadata(out / "sample-7-seed0" / "0000.png")["command"]
    import shlex

    assert run([*shlex.split(command)[2:], "--out", tmp_path / "again"]) == 0
    again = tmp_path / "again" / "sample-7-seed0" / "0000.png"
    assert again.read_bytes() == (out / "sample-7-seed0" / "0000.png").read_bytes()


def test_a_picture_is_drawn_at_its_own_size_unless_asked_otherwise(files, tmp_path, capsys):
    config, weights = files
    Image.new("RGB", (41, 30)).save(tmp_path / "from.png")
    arguments = [config, "--weights", weights, "--prompt", "3", "--steps", 1, "--out", tmp_path]
    assert run([*arguments, "--init-image", tmp_path / "from.png"]) == 0, capsys.readouterr().err
    assert Image.open(tmp_path / "sample-7-seed0" / "0000.png").size == (40, 28)


def _corrupt(folder):
    (folder / "bad.png").write_bytes(b"\x89PNG broken")
    return ["--init-image", folder / "bad.png"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (lambda _: ["--height", 24], "--height and --width go together"),
        (lambda _: ["--height", 25, "--width", 24], "height=25: must be a multiple of 4, such as"),
        (lambda _: ["--height", 0, "--width", 24], "height=0: must be a multiple of 4"),
        (lambda _: ["--strength", 0.5], "--strength 0.5: says what to do with --init-image"),
        (lambda _: ["--mask", "m.png"], "--mask m.png: says what to do with --init-image"),
        (lambda _: ["--init-image", "nowhere.png"], "nowhere.png: No such file"),
        (_corrupt, "not a picture that can be read"),
        (lambda _: ["--dtype", "int8"], "--dtype int8: must be one of float32"),
        (lambda _: ["--offload", "disk"], "--offload disk: must be one of auto, blocks, none"),
        (lambda _: ["--offload", "blocks", "--compile"], "--compile needs blocks that stay"),
        (lambda _: ["--autoencoder", "ae.safetensors"], "pixels need no autoencoder"),
        (lambda _: ["--weights", "nowhere.safetensors"], "no weights at nowhere.safetensors"),
        (lambda _: ["--weights", "ema"], "say with --weights which file"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(files, tmp_path, capsys, more, said):
    config, weights = files
    given = [config, "--weights", weights, "--prompt", "3", "--steps", 1, "--out", tmp_path / "out"]
    assert run([*given, *more(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_strength_that_can_not_be_is_named(files, tmp_path, capsys):
    config, weights = files
    Image.new("RGB", (16, 16)).save(tmp_path / "from.png")
    given = [config, "--weights", weights, "--prompt", "3", "--steps", 1, "--out", tmp_path / "o"]
    assert run([*given, "--init-image", tmp_path / "from.png", "--strength", 1.5]) == 2
    assert "strength=1.5: must lie above 0" in capsys.readouterr().err


def test_released_weights_need_a_prompt(files, pipeline, tmp_path, capsys):
    config, _ = files
    plain = in_dtype(tmp_path / "plain.safetensors", pipeline, torch.float32)
    assert run([config, "--weights", plain]) == 2
    assert "give --prompt" in capsys.readouterr().err


def test_an_export_of_ours_brings_captions_to_draw(files, tmp_path, capsys):
    config, weights = files
    assert run([config, "--weights", weights, "--num-samples", 3, "--out", tmp_path]) == 0
    assert set((tmp_path / "sample-7-seed0.txt").read_text().split()) <= {"3", "three", "7"}


def test_weights_with_a_checkpoint_are_refused(files, tmp_path, capsys):
    assert run([tmp_path / "diffusion-7.pt", "--weights", files[1], "--prompt", "3"]) == 2
    assert "must be ema or model for a checkpoint" in capsys.readouterr().err


def test_weights_in_a_checkpoints_place_are_told_where_they_belong(files, tmp_path, capsys):
    _, weights = files
    export(tmp_path / "diffusion-7.pt", tmp_path / "folder", "diffusers", samples=False)
    for source in (weights, tmp_path / "folder"):
        assert run([source, "--prompt", "3"]) == 2
        assert f"fluxsmith import {source} NAME.pt" in capsys.readouterr().err


def test_mistakes_are_named_before_anything_is_loaded(toy, files):
    """Such as a size that can't be drawn, which else would wait for T5."""

    def refuse(pipeline):
        assert pipeline.network.img_in.weight.is_meta
        raise UserError("not like this")

    with pytest.raises(UserError, match="not like this"):
        load_released(toy(), files[1], refuse, device="cpu")


def test_a_checkpoint_can_be_streamed_and_converted(files, tmp_path):
    """Its weights stay in their file, and the blocks come and go."""
    plan = lambda pipeline, path: ["3"]  # noqa: E731
    whole, _ = open_pipeline(tmp_path / "diffusion-7.pt", plan, device="cpu")
    streamed, _ = open_pipeline(tmp_path / "diffusion-7.pt", plan, device="cpu", offload="blocks")
    assert_equal(drawn(streamed), drawn(whole))
    coarse, _ = open_pipeline(
        tmp_path / "diffusion-7.pt", plan, device="cpu", offload="blocks", dtype="bfloat16"
    )
    assert coarse.network.double_blocks[0].img_attn.proj.weight.dtype == torch.float32
    assert coarse.network.img_in.weight.dtype == torch.bfloat16
    difference = (drawn(coarse) - drawn(whole)).abs().max()
    assert 0 < difference < 0.3


def test_weights_made_in_other_latents_are_refused(toy, tmp_path):
    """An export says which autoencoder it was trained with."""
    latent = ("data.channels=3", "model.patch_size=2", "autoencoder.kind=flux")
    own, other = (save_autoencoder(tmp_path / f"{i}.safetensors", seed=i) for i in (0, 1))
    built = Pipeline.build(toy(*latent, f"autoencoder.weights={own}"))
    export(save_checkpoint(tmp_path / "d.pt", built), tmp_path / "m.safetensors", "bfl")
    loaded_from(toy(*latent, f"autoencoder.weights={own}"), tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"autoencoder\.weights: .* was trained with"):
        loaded_from(toy(*latent, f"autoencoder.weights={other}"), tmp_path / "m.safetensors")


def test_a_learned_text_encoder_must_be_there(files, tmp_path, capsys):
    config, weights = files
    weights.with_suffix(".text.safetensors").unlink()
    assert run([config, "--weights", weights, "--prompt", "3", "--out", tmp_path / "out"]) == 2
    assert "without the text encoder that was learned with it" in capsys.readouterr().err


def test_weights_of_another_size_are_named(toy_file, files, tmp_path, capsys):
    _, weights = files
    larger = tmp_path / "larger.yaml"
    larger.write_text(toy_file.read_text().replace("depth: 1", "depth: 2", 1))
    assert run([larger, "--weights", weights, "--prompt", "3", "--out", tmp_path / "out"]) == 2
    assert "made with depth 1, here 2" in capsys.readouterr().err
