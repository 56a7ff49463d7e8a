"""Our names and diffusers': there and back, and against the mapping that the network's own test
uses, written by itself."""

from dataclasses import replace

import pytest
import torch
from interop_models import flux_at_random, inputs, tiny_params

from fluxsmith.errors import UserError
from fluxsmith.interop.diffusers_names import from_diffusers, to_diffusers

pytest.importorskip("diffusers")
from diffusers import FluxTransformer2DModel
from diffusers_mapping import diffusers_weights

from fluxsmith.interop.diffusers_folder import transformer_config

SIZES = {
    "plain": tiny_params(),
    "guidance": tiny_params(guidance_embed=True),
    "uneven": tiny_params(
        hidden_size=60, num_heads=3, axes_dim=(2, 8, 10), depth=1, depth_single_blocks=3
    ),
    "dual only": tiny_params(depth_single_blocks=0),
}


@pytest.mark.parametrize("params", SIZES.values(), ids=SIZES)
def test_there_and_back_is_the_identity(params):
    weights = flux_at_random(params).state_dict()
    back = from_diffusers(to_diffusers(weights))
    assert back.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("params", SIZES.values(), ids=SIZES)
def test_the_names_are_those_of_an_independent_mapping(params):
    weights = flux_at_random(params).state_dict()
    ours, theirs = to_diffusers(weights), diffusers_weights(weights, params.hidden_size)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


@torch.no_grad()
@pytest.mark.parametrize("params", SIZES.values(), ids=SIZES)
def test_diffusers_computes_the_same_with_the_written_config(params):
    params = replace(params, out_channels=None)
    flux = flux_at_random(params)
    theirs = FluxTransformer2DModel.from_config(transformer_config(params)).eval()
    theirs.load_state_dict(to_diffusers(flux.state_dict()))
    x = inputs(params)
    expected = theirs(
        hidden_states=x["img"],
        encoder_hidden_states=x["txt"],
        pooled_projections=x["y"],
        timestep=x["timesteps"],
        img_ids=x["img_ids"],
        txt_ids=x["txt_ids"],
        guidance=x["guidance"],
    ).sample
    torch.testing.assert_close(flux(**x), expected, rtol=0, atol=1e-5)


def test_what_diffusers_has_and_we_do_not_know_stays_to_be_complained_about():
    weights = to_diffusers(flux_at_random(tiny_params()).state_dict()) | {"odd": torch.ones(1)}
    assert "odd" in from_diffusers(weights)


def test_a_part_that_is_missing_is_named():
    weights = to_diffusers(flux_at_random(tiny_params()).state_dict())
    del weights["transformer_blocks.1.attn.to_k.weight"]
    with pytest.raises(UserError, match=r"lack transformer_blocks\.1\.attn\.to_k\.weight"):
        from_diffusers(weights)
