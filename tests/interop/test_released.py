"""Released weights under a config: what is loaded, in which dtype, and what is said of mistakes."""

import json
import shlex

import pytest
import torch
from helpers import randomise
from PIL import Image
from test_exporting import save_checkpoint
from tiny_autoencoder import save_autoencoder

from fluxsmith import Pipeline
from fluxsmith.cli import main
from fluxsmith.errors import UserError
from fluxsmith.interop.exporting import export
from fluxsmith.interop.importing import import_model
from fluxsmith.interop.open_pipeline import open_pipeline, open_released
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage.tensor_files import write_tensors
from fluxsmith.training.run import build_trainer


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


def assert_equal(
    one, two
):  # but for a sum's order: where a tensor lies in a mapped file changes it
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def loaded_from(config, weights, **options):
    return open_released(config, weights, lambda _: ["3"], device="cpu", **options)


def drawn(pipeline):
    return Sampler(pipeline).generate(["3", "seven"], steps=2, guidance=2, seed=1)


@pytest.mark.parametrize(
    ("stored", "asked", "computed"),
    [
        (torch.float32, None, torch.float32),
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
    coarse = randomise(Pipeline.build(toy()).eval())
    coarse.network.to(stored).to(computed)
    assert_equal(drawn(loaded), drawn(coarse))
    offloaded = loaded_from(toy(), path, dtype=asked, offload="blocks")
    assert_equal(drawn(offloaded), drawn(coarse))


def run(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["sample", *map(str, arguments)])
    return stopped.value.code or 0


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
    command = picture.text["command"]
    assert run([*shlex.split(command)[2:], "--out", tmp_path / "again"]) == 0
    again = tmp_path / "again" / "sample-7-seed0" / "0000.png"
    assert again.read_bytes() == (out / "sample-7-seed0" / "0000.png").read_bytes()


def test_a_picture_is_drawn_at_its_own_size_unless_asked_otherwise(files, tmp_path, capsys):
    config, weights = files
    Image.new("RGB", (41, 30)).save(tmp_path / "from.png")
    arguments = [config, "--weights", weights, "--prompt", "3", "--steps", 1, "--out", tmp_path]
    assert run([*arguments, "--init-image", tmp_path / "from.png"]) == 0, capsys.readouterr().err
    assert Image.open(tmp_path / "sample-7-seed0" / "0000.png").size == (40, 28)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--height", 24], "--height and --width go together"),
        (["--mask", "m.png"], "--mask m.png: says what to do with --init-image"),
        (["--init-image", "nowhere.png"], "--init-image nowhere.png: there is no such file"),
        (["--init-image", "bad.png"], "bad.png: no image that Pillow knows"),
        (["--init-image", "from.png", "--strength", 1.5], "strength=1.5: must lie above 0"),
        (["--set", "model.depth=2"], "made with depth 1, here 2"),
        (["--dtype", "int8"], "--dtype int8: must be one of float32"),
        (["--offload", "disk"], "--offload disk: must be one of auto, blocks, none"),
        pytest.param(["--offload", "blocks", "--compile"], "needs blocks that stay",
                     marks=pytest.mark.slow),
        (["--autoencoder", "ae.safetensors"], "autoencoder.kind=pixel has no weights"),
        (["--weights", "nowhere.safetensors"], "no weights at nowhere.safetensors"),
        (["--weights", "ema"], "--weights ema: give a file of weights with a config"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(files, tmp_path, capsys, monkeypatch, more, said):
    config, weights = files
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16)).save("from.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG broken")
    given = [config, "--weights", weights, "--prompt", "3", "--steps", 1, "--out", "out"]
    assert run([*given, *more]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_released_weights_need_a_prompt_and_an_export_brings_captions(
    files, pipeline, tmp_path, capsys
):
    config, weights = files
    plain = in_dtype(tmp_path / "plain.safetensors", pipeline, torch.float32)
    assert run([config, "--weights", plain]) == 2
    assert "give --prompt" in capsys.readouterr().err
    assert run([config, "--weights", weights, "--num-samples", 3, "--out", tmp_path]) == 0
    assert set((tmp_path / "sample-7-seed0.txt").read_text().split()) <= {"3", "three", "7"}
    (tmp_path / "flux.text.safetensors").unlink()
    assert run([config, "--weights", weights]) == 2
    assert "without the text encoder that was learned with it" in capsys.readouterr().err


def test_weights_and_checkpoints_are_told_where_they_belong(files, tmp_path, capsys):
    _, weights = files
    assert run([tmp_path / "diffusion-7.pt", "--weights", weights, "--prompt", "3"]) == 2
    assert "and ema or model with a checkpoint" in capsys.readouterr().err
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
        open_released(toy(), files[1], refuse, device="cpu")


def test_a_checkpoint_can_be_offloaded_and_converted(files, tmp_path):
    """Its weights stay in their file, and blocks are copied from there while they compute."""
    plan = lambda pipeline, path: ["3"]  # noqa: E731
    whole, _ = open_pipeline(tmp_path / "diffusion-7.pt", plan, device="cpu")
    options = {"device": "cpu", "offload": "blocks"}
    offloaded, _ = open_pipeline(tmp_path / "diffusion-7.pt", plan, **options)
    assert_equal(drawn(offloaded), drawn(whole))
    coarse, _ = open_pipeline(tmp_path / "diffusion-7.pt", plan, dtype="bfloat16", **options)
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


def test_a_folder_that_is_drawn_along_other_times_says_so(toy, tmp_path, pipeline, caplog):
    export(save_checkpoint(tmp_path / "d.pt", pipeline), tmp_path / "m", "diffusers", samples=False)
    loaded_from(toy(), tmp_path / "m")
    assert not caplog.text
    said = "its scheduler says {'schedule': 'uniform'}; sample.schedule=flux"
    loaded_from(toy("sample.schedule=flux"), tmp_path / "m")
    assert said in caplog.text
    start = f"train.init_from={tmp_path / 'm'}"
    for more in ((), ("train.adapter={kind: lora, rank: 2}",)):
        caplog.clear()
        build_trainer(toy(start, *more), torch.device("cpu"))
        assert "scheduler" not in caplog.text
        build_trainer(toy(start, "sample.schedule=flux", *more), torch.device("cpu"))
        assert caplog.text.count(said) == 1
        scheduler = tmp_path / "m" / "scheduler" / "scheduler_config.json"
        own = scheduler.read_text()
        scheduler.write_text(json.dumps(json.loads(own) | {"use_beta_sigmas": True}))
        with pytest.raises(UserError, match="use_beta_sigmas=True can't be drawn with"):
            build_trainer(toy(start, *more), torch.device("cpu"))
        scheduler.write_text(own)


@pytest.mark.parametrize(
    "way", ["sample", "import", "import with a config", "train", "fill", "lora"]
)
def test_a_network_that_takes_a_control_picture_is_refused_everywhere(
    files, toy, tmp_path, pipeline, way
):
    """FLUX.1 Canny and Depth: 128 features of a token, the latents and those of the picture."""
    weights = dict(pipeline.network.state_dict())
    weights["img_in.weight"] = torch.cat(2 * [weights["img_in.weight"]], dim=1)
    path = in_dtype(tmp_path / "canny.safetensors", pipeline, torch.float32)
    write_tensors(path, weights, {})
    with pytest.raises(UserError, match=r"as FLUX\.1 Canny and Depth do, which can't be drawn"):
        match way:
            case "sample":
                loaded_from(toy(), path)
            case "import":
                import_model(path, tmp_path / "out.pt")
            case "import with a config":
                import_model(path, tmp_path / "out.pt", files[0])
            case "train":
                build_trainer(toy(f"train.init_from={path}"), torch.device("cpu"))
            case "fill":
                fill = ("model.conditioning=fill", "objective.kind=fill")
                build_trainer(toy(f"train.init_from={path}", *fill), torch.device("cpu"))
            case "lora":
                lora = (f"train.init_from={path}", "train.adapter.kind=lora")
                build_trainer(toy(*lora), torch.device("cpu"))
