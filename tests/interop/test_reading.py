"""Weights in every form they are handed around in, and what is said of those that don't fit."""

import json
import os
from dataclasses import replace

import pytest
import torch
from flux_at_random import flux_at_random, tiny_params
from safetensors.torch import save_file

from fluxsmith.errors import UserError
from fluxsmith.interop.diffusers_names import to_diffusers
from fluxsmith.interop.infer_params import check_fits, infer_params
from fluxsmith.interop.read_weights import read_weights
from fluxsmith.model.flux import PRESETS, Flux

AXES = (4, 6, 6)
INDEX = "many.safetensors.index.json"
OUTSIDE = '{"weight_map": {"x": "../../outside.safetensors"}}'


@pytest.fixture
def weights():
    return flux_at_random(tiny_params(guidance_embed=True)).state_dict()


def save_shards(folder, weights, name):
    """Two shards and their index, as large models come."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(weights)
    where = {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{name}-0000{i}-of-00002.safetensors"
        save_file({n: weights[n].contiguous() for n in part}, folder / file)
        where |= dict.fromkeys(part, file)
    index = folder / f"{name}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def forms(tmp_path, weights):
    """Each way to keep these weights, with the path that is given."""
    contiguous = {name: t.contiguous() for name, t in weights.items()}
    theirs = {name: t.contiguous() for name, t in to_diffusers(weights).items()}
    save_file(contiguous, tmp_path / "flux.safetensors")
    save_file(contiguous, tmp_path / "flux.sft")
    together = {f"model.diffusion_model.{n}": t for n, t in contiguous.items()}
    save_file(together | {"vae.x": torch.zeros(1)}, tmp_path / "all-in-one.safetensors")
    torch.save(contiguous, tmp_path / "flux.pt")
    save_file(theirs, tmp_path / "renamed.safetensors")
    (tmp_path / "bfl").mkdir()
    save_file(contiguous, tmp_path / "bfl" / "flux.safetensors")
    transformer = tmp_path / "pipeline" / "transformer"
    save_shards(transformer, theirs, "diffusion_pytorch_model")
    config = {"_class_name": "FluxTransformer2DModel", "axes_dims_rope": list(AXES)}
    (transformer / "config.json").write_text(json.dumps(config))
    return {
        "a BFL file": tmp_path / "flux.safetensors",
        "its other extension": tmp_path / "flux.sft",
        "a file with more in it": tmp_path / "all-in-one.safetensors",
        "torch's own format": tmp_path / "flux.pt",
        "a folder with one file": tmp_path / "bfl",
        "shards by their index": save_shards(tmp_path / "shards", weights, "flux"),
        "a folder of shards": tmp_path / "shards",
        "a diffusers pipeline": tmp_path / "pipeline",
        "its transformer alone": transformer,
        "a file under diffusers' names": tmp_path / "renamed.safetensors",
    }


def test_every_form_gives_the_same_weights(tmp_path, weights):
    for form, path in forms(tmp_path, weights).items():
        read = read_weights(path).network
        assert read.keys() == weights.keys(), form
        for name, tensor in weights.items():
            assert torch.equal(read[name], tensor), (form, name)


@pytest.mark.parametrize(
    "params",
    [
        tiny_params(),
        tiny_params(guidance_embed=True, qkv_bias=False),
        tiny_params(depth=0, mlp_ratio=3.0),
        tiny_params(depth_single_blocks=0),
    ],
)
def test_sizes_are_read_off_the_weights(params):
    weights = flux_at_random(params).state_dict()
    assert infer_params(weights, "x", params.axes_dim) == replace(params, axes_dim=AXES)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_recognised_whole(preset):
    """FLUX.1 dev, schnell and the lesson's network: also their axes, which no tensor shows."""
    with torch.device("meta"):
        weights = Flux(PRESETS[preset]).state_dict()
    assert infer_params(weights, "x") == PRESETS[preset]


@pytest.mark.parametrize(
    ("given", "model", "said"),
    [
        ({"guidance_embed": True}, {}, r"Use a config with guidance_embed=true: variants like dev"),
        ({"in_channels": 8}, {}, r"Are model\.patch_size, data\.channels"),
        ({"in_channels": 24, "out_channels": 4}, {}, r"FLUX\.1 Fill does.*conditioning=fill"),
        ({}, {"depth": 3}, r"made with depth 2, here 3"),
        ({}, {"num_heads": 1, "axes_dim": (8, 12, 12)}, r"axes_dim \[8, 12, 12\] sums to 32"),
        ({}, {"context_in_dim": 12}, r"size mismatch for txt_in\.weight: .*32, 10"),
    ],
)
def test_weights_of_another_model_are_named_with_the_likely_cause(given, model, said):
    weights = flux_at_random(tiny_params(**given)).state_dict()
    with pytest.raises(UserError, match=said) as raised:
        check_fits(weights, tiny_params(**model), "x.safetensors")
    assert "\n" not in str(raised.value)
    assert "x.safetensors" in str(raised.value)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (["lora_unet_double_blocks_0.lora_down.weight"], "a LoRA, not a model"),
        (["encoder.block.0.weight"], "a text encoder"),
        (["img_in.weight", "img_in.scale_weight"], "is a scale, but img_in.weight is not in fp8"),
        (["model.layers.0.weight"], r"no Flux: there is no img_in\.weight, but model\.layers"),
        (["img_in.weight"], "not a whole Flux: it lacks"),
        (["decoder.conv_in.weight"], "an autoencoder, not a network"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, tensors, said):
    save_file({name: torch.zeros(2, 2) for name in tensors}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=said):
        infer_params(read_weights(tmp_path / "x.safetensors").network, "x.safetensors")


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("flux.safetensors", lambda file: os.truncate(file, 20_000), "not a whole safetensors"),
        (INDEX, lambda file: next(file.parent.glob("many-00002*")).unlink(), "fetch all its"),
        (INDEX, lambda file: file.write_text(OUTSIDE), "which is not there"),
        (".", lambda folder: (folder / INDEX).unlink(), "name the one to use"),
        ("empty", lambda folder: folder.mkdir(), "no weights in"),
        ("nowhere.safetensors", lambda _: None, "no weights at"),
        ("cat.png", lambda file: file.write_bytes(b"\x89PNG"), "holds no weights that can be read"),
        ("config.json", lambda file: file.write_text("{}"), "no index of shards"),
    ],
)
def test_damaged_and_missing_files_are_named(tmp_path, weights, name, damage, said):
    save_file({n: t.contiguous() for n, t in weights.items()}, tmp_path / "flux.safetensors")
    save_shards(tmp_path, weights, "many")
    damage(tmp_path / name)
    with pytest.raises(UserError, match=said) as raised:
        read_weights(tmp_path / name)
    assert "\n" not in str(raised.value)
