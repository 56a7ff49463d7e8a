"""FLUX.1's autoencoder against diffusers' AutoencoderKL, an implementation that isn't ours."""

from dataclasses import replace

import pytest
import torch
from helpers import assert_agree
from tiny_autoencoder import TINY, tiny_network

from fluxsmith.autoencoder.flux_ae import FluxAutoencoder
from fluxsmith.autoencoder.flux_files import diffusers_config, to_diffusers
from fluxsmith.autoencoder.network import AutoencoderNetwork, AutoencoderParams

diffusers = pytest.importorskip("diffusers")

GREY = replace(TINY, in_channels=1, ch_mult=(1, 2), num_res_blocks=2)
FLUX1 = pytest.param(AutoencoderParams(), id="flux", marks=pytest.mark.slow)


@pytest.mark.parametrize("params", [TINY, GREY, FLUX1])
@torch.no_grad()
def test_equals_diffusers(params):
    """Encoding, the mean, and decoding, at a size that is not square."""
    ours = FluxAutoencoder(tiny_network(params))
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL.from_config(diffusers_config(ours)).eval()
    theirs.load_state_dict(to_diffusers(ours.network), assign=True)
    draw = torch.Generator().manual_seed(1)
    height, width = 4 * params.factor, 6 * params.factor
    images = torch.rand(2, params.in_channels, height, width, generator=draw) * 2 - 1
    expected = theirs.encode(images).latent_dist.mean
    mean = ours.encode(images)
    assert mean.shape == (2, params.z_channels, 4, 6)
    assert mean.std() > 0.01
    expected = (expected - theirs.config.shift_factor) * theirs.config.scaling_factor
    assert_agree(mean, expected, within=1e-4)

    latents = torch.randn(2, params.z_channels, 4, 6, generator=draw)
    pictures = ours.decode(latents)
    z = latents / theirs.config.scaling_factor + theirs.config.shift_factor
    assert pictures.shape == images.shape
    assert pictures.std() > 0.01
    assert_agree(pictures, theirs.decode(z).sample, within=1e-4)


def test_the_released_file_has_these_names_and_this_many_parameters():
    """Of ae.safetensors: 244 tensors, 83,819,683 parameters, as diffusers' own model has them."""
    with torch.device("meta"):
        ours = AutoencoderNetwork(AutoencoderParams())
        theirs = diffusers.AutoencoderKL.from_config(diffusers_config(FluxAutoencoder(ours)))
    assert len(ours.state_dict()) == len(theirs.state_dict()) == 244
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) == 83_819_683
    assert ours.state_dict().keys() >= {
        "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.mid.attn_1.proj_out.weight",
        "decoder.up.3.upsample.conv.bias",
    }
