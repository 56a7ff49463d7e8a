"""The network against diffusers' FluxTransformer2DModel, an implementation that isn't ours."""

from dataclasses import replace

import pytest
import torch
from flux_at_random import flux_at_random, inputs, tiny_params
from helpers import assert_agree

from fluxsmith.model.flux import PRESETS

pytest.importorskip("diffusers")
from diffusers_mapping import diffusers_flux

SIZES = {
    "tiny": tiny_params(),
    "uneven": tiny_params(
        hidden_size=60,
        num_heads=3,
        axes_dim=(2, 8, 10),
        depth=1,
        depth_single_blocks=3,
        out_channels=7,
    ),
    "dual only": tiny_params(depth_single_blocks=0),
    "lesson": PRESETS["lesson"],
}


@torch.no_grad()
@pytest.mark.parametrize("guidance_embed", [False, True], ids=["plain", "guidance"])
@pytest.mark.parametrize("params", SIZES.values(), ids=SIZES)
def test_equals_diffusers(params, guidance_embed):
    flux = flux_at_random(replace(params, guidance_embed=guidance_embed))
    x = inputs(flux.params)
    ours = flux(**x)
    theirs = diffusers_flux(flux)(
        hidden_states=x["img"],
        encoder_hidden_states=x["txt"],
        pooled_projections=x["y"],
        timestep=x["timesteps"],
        img_ids=x["img_ids"],
        txt_ids=x["txt_ids"],
        guidance=x["guidance"],
    ).sample
    assert ours.shape == (3, 15, params.out_channels or params.in_channels)
    assert 0.3 < ours.std() < 3  # of order 1, so that 1e-5 means something
    assert_agree(ours, theirs, within=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("time", [1.0, 0.7, 0.33])
@pytest.mark.parametrize("guidance", [1.0, 3.5, 4.0, 7.0])
def test_bfloat16_rounds_time_and_guidance_as_diffusers(time, guidance):
    """1000 times each is rounded before its embedding: without that, they are up to 1.3 apart."""
    flux = flux_at_random(tiny_params(guidance_embed=True, hidden_size=64, axes_dim=(8, 12, 12)))
    flux.bfloat16()
    x = inputs(flux.params)
    x |= {"timesteps": torch.full((3,), time), "guidance": torch.full((3,), guidance)}
    theirs = diffusers_flux(flux)(
        hidden_states=x["img"].bfloat16(),
        encoder_hidden_states=x["txt"].bfloat16(),
        pooled_projections=x["y"].bfloat16(),
        timestep=x["timesteps"].bfloat16(),
        img_ids=x["img_ids"],
        txt_ids=x["txt_ids"],
        guidance=x["guidance"],
    ).sample
    assert_agree(flux(**x).float(), theirs.float(), within=0.06)
