"""Weights in every form they are handed around in, and what is said of those that don't fit."""

import json
from dataclasses import replace

import pytest
import torch
from interop_models import flux_at_random, tiny_params
from safetensors.torch import save_file
from tiny_autoencoder import save_autoencoder

from fluxsmith.errors import UserError
from fluxsmith.interop.diffusers_names import to_diffusers
from fluxsmith.interop.fitting import check_fits, params_of
from fluxsmith.interop.reading import read_weights
from fluxsmith.model.flux import PRESETS, Flux

AXES = (4, 6, 6)


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
    save_file({f"model.diffusion_model.{n}": t for n, t in contiguous.items()} | {"vae.x": AE_PART},
              tmp_path / "all-in-one.safetensors")  # fmt: skip
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


AE_PART = torch.zeros(1)


def test_every_form_gives_the_same_weights(tmp_path, weights):
    for form, path in forms(tmp_path, weights).items():
        read = read_weights(path).network
        assert read.keys() == weights.keys(), form
        for name, tensor in weights.items():
            assert torch.equal(read[name], tensor), (form, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_weights_keep_their_dtype(tmp_path, weights, dtype):
    save_file({n: t.to(dtype) for n, t in weights.items()}, tmp_path / "flux.safetensors")
    read = read_weights(tmp_path / "flux.safetensors").network
    assert {t.dtype for t in read.values()} == {dtype}


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
    assert params_of(weights, "x", params.axes_dim) == replace(params, axes_dim=AXES)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_recognised_whole(preset):
    """FLUX.1 dev, schnell and the lesson's network: also their axes, which no tensor shows."""
    with torch.device("meta"):
        weights = Flux(PRESETS[preset]).state_dict()
    assert params_of(weights, "x") == PRESETS[preset]


def changed(**sizes):
    return flux_at_random(tiny_params(**sizes)).state_dict()


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({}, r"variant with a guidance input, as dev"),
        ({"guidance_embed": True, "in_channels": 8}, r"Are model\.patch_size, data\.channels"),
        ({"guidance_embed": True, "in_channels": 24, "out_channels": 4}, r"FLUX\.1 Fill, Canny"),
        ({"guidance_embed": True, "depth": 3}, r"made with depth 2, here 3"),
        ({"guidance_embed": True, "num_heads": 1, "axes_dim": (8, 12, 12)}, r"16 wide, here 32"),
        ({"guidance_embed": True, "context_in_dim": 12}, r"txt_in\.weight \(32, 10\), here"),
    ],
)
def test_weights_of_another_model_are_named_with_the_likely_cause(weights, sizes, said):
    """The first few tensors, and what most likely happened; here the given weights are the tiny
    ones with a guidance input, and the model is another's."""
    model = tiny_params(**sizes)
    given = weights
    if "in_channels" in sizes:
        model, given = tiny_params(guidance_embed=True), changed(**sizes)
    with pytest.raises(UserError, match=said) as raised:
        check_fits(given, model, "x.safetensors")
    assert "\n" not in str(raised.value)
    assert "x.safetensors" in str(raised.value)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (["lora_unet_double_blocks_0.lora_down.weight"], "a LoRA, not a model"),
        (["transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"], "a LoRA"),
        (["text_model.embeddings.weight"], "a text encoder"),
        (["encoder.block.0.layer.0.weight"], "a text encoder"),
        (["img_in.weight", "img_in.scale_weight"], "fp8 weights with scales"),
        (["model.layers.0.weight"], r"no Flux: there is no img_in\.weight, but model\.layers"),
        (["img_in.weight"], "not a whole Flux: it lacks"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, tensors, said):
    save_file({name: torch.zeros(2, 2) for name in tensors}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=said):
        params_of(read_weights(tmp_path / "x.safetensors").network, "x.safetensors")


def test_an_autoencoder_given_as_a_network_is_named(tmp_path):
    path = save_autoencoder(tmp_path / "ae.safetensors")
    with pytest.raises(UserError, match="an autoencoder, not a network"):
        params_of(read_weights(path).network, str(path))


def test_a_file_of_another_kind_is_told_from_one_with_code_in_it(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match=r"cat\.png holds no weights that can be read"):
        read_weights(tmp_path / "cat.png")


def test_a_text_encoders_folder_given_as_a_network_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["CLIPTextModel"]}')
    with pytest.raises(UserError, match="holds CLIPTextModel, not diffusers' FluxTransformer2DM"):
        read_weights(tmp_path)


def test_heads_of_an_unknown_size_need_a_config(weights):
    with pytest.raises(UserError, match=r"heads are 16 wide.*model\.axes_dim"):
        params_of(weights, "x")


def _cut_short(folder):
    whole = (folder / "flux.safetensors").read_bytes()
    (folder / "flux.safetensors").write_bytes(whole[: len(whole) // 2])
    return folder / "flux.safetensors"


def _empty(folder):
    (folder / "flux.safetensors").write_bytes(b"")
    return folder / "flux.safetensors"


def _no_shard(folder):
    next(folder.glob("many-00002*")).unlink()
    return folder / "many.safetensors.index.json"


def _shard_elsewhere(folder):
    index = folder / "many.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"] = dict.fromkeys(data["weight_map"], "../../outside.safetensors")
    index.write_text(json.dumps(data))
    return index


def _no_index(folder):
    (folder / "many.safetensors.index.json").write_text("[1, 2]")
    return folder / "many.safetensors.index.json"


def _two_files(folder):
    (folder / "flux.safetensors").rename(folder / "a.safetensors")
    (folder / "many.safetensors.index.json").unlink()
    return folder


def _nothing(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut_short, "not a whole safetensors file"),
        (_empty, "not a whole safetensors file"),
        (_no_shard, "which is not there; fetch all its shards"),
        (_shard_elsewhere, "which is not there"),
        (_no_index, "a mapping belongs in it"),
        (_two_files, "name the one to use"),
        (_nothing, "no weights in"),
        (lambda folder: folder / "nowhere.safetensors", "no weights at"),
    ],
)
def test_damaged_and_missing_files_are_named(tmp_path, weights, damage, said):
    save_file({n: t.contiguous() for n, t in weights.items()}, tmp_path / "flux.safetensors")
    save_shards(tmp_path, weights, "many")
    with pytest.raises(UserError, match=said) as raised:
        read_weights(damage(tmp_path))
    assert "\n" not in str(raised.value)
