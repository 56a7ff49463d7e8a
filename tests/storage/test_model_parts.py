"""One model out of a file, whatever stands before its names."""

import logging

import pytest
import torch
from flux_at_random import flux_at_random, tiny_params
from tiny_autoencoder import tiny_network

from fluxsmith.errors import UserError
from fluxsmith.interop.diffusers_names import to_diffusers
from fluxsmith.interop.read_weights import read_weights
from fluxsmith.storage.model_parts import read_part
from fluxsmith.storage.tensor_files import write_tensors

PREFIXES = (
    "", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "module.",
    "_orig_mod.", "dit.", "pipe.dit.", "module._orig_mod.", "state_dict.model.", "anything.else.",
)  # fmt: skip


@pytest.fixture
def weights():
    return flux_at_random(tiny_params(guidance_embed=True)).state_dict()


def saved(path, *parts):
    write_tensors(path, {n: t for part in parts for n, t in part.items()}, {})
    return path


def below(prefix, tensors):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("spelling", ["bfl", "diffusers", "torchtitan"])
def test_any_prefix_and_spelling_is_the_same_network(tmp_path, weights, prefix, spelling):
    named = to_diffusers(weights) if spelling == "diffusers" else weights
    if spelling == "torchtitan":
        named = {name.replace("norm.scale", "norm.weight"): t for name, t in named.items()}
    path = saved(tmp_path / "x.safetensors", below(prefix, named))
    assert_same(read_weights(path).network, weights)


def test_wrappers_within_the_names_are_left_out(tmp_path, weights):
    named = {n.replace("blocks.0.", "blocks.0._orig_mod."): t for n, t in weights.items()}
    named = {n.replace("img_attn.", "_fsdp_wrapped_module.img_attn."): t for n, t in named.items()}
    assert_same(read_weights(saved(tmp_path / "x.safetensors", named)).network, weights)


@pytest.mark.parametrize("vae", ["vae.", "first_stage_model."])
@pytest.mark.parametrize("network", ["model.diffusion_model.", ""])
def test_a_file_that_holds_all_gives_each(tmp_path, weights, network, vae):
    autoencoder = tiny_network().state_dict()
    clip = {"embeddings.token_embedding.weight": torch.randn(9, 4), "final.weight": torch.ones(4)}
    t5 = {"encoder.block.0.layer.0.SelfAttention.q.weight": torch.randn(4, 4)}
    path = saved(
        tmp_path / "all.safetensors",
        below(network, weights),
        below(vae, autoencoder),
        below("text_encoders.clip_l.transformer.text_model.", clip),
        {"text_encoders.clip_l.logit_scale": torch.ones(1)},
        below("text_encoders.t5xxl.transformer.", t5),
    )
    assert_same(read_weights(path).network, weights)
    for part, expected in {"autoencoder": autoencoder, "t5": t5}.items():
        assert_same(read_part(path, part)[0], expected)
    assert_same(read_part(path, "clip")[0], clip)


@pytest.mark.parametrize("average", ["ema.", "model_ema.", "ema_model.module."])
@pytest.mark.parametrize("network", ["", "model."])
def test_of_an_average_beside_the_weights_are_taken(tmp_path, weights, caplog, network, average):
    other = {name: tensor + 1 for name, tensor in weights.items()}
    counts = {f"{average.partition('.')[0]}.decay": torch.tensor([1])}
    path = saved(tmp_path / "x.safetensors", below(network, weights), below(average, other), counts)
    with caplog.at_level(logging.WARNING):
        assert_same(read_weights(path).network, weights)
    assert f"the average below {average} is left" in caplog.text
    alone = saved(tmp_path / "alone.safetensors", below(average, other), counts)
    assert_same(read_weights(alone).network, other)


def test_two_networks_leave_a_choice(tmp_path, weights):
    path = saved(tmp_path / "x.safetensors", below("a.", weights), below("b.", weights))
    with pytest.raises(UserError, match=r"several models, below a\. and b\."):
        read_weights(path)


def test_nested_dictionaries_of_torch_are_searched(tmp_path, weights):
    torch.save({"state_dict": {"model": weights}, "epoch": 3}, tmp_path / "x.ckpt")
    assert_same(read_weights(tmp_path / "x.ckpt").network, weights)
