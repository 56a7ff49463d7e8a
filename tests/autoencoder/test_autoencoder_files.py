"""Autoencoders from files, and what is said of files that hold none."""

import json

import pytest
import torch
from tiny_autoencoder import (
    TINY,
    file_metadata,
    read_autoencoder,
    save_autoencoder,
    tiny_autoencoder,
    tiny_network,
)

from fluxsmith.autoencoder.flux_ae import SCALE, SHIFT
from fluxsmith.autoencoder.flux_files import diffusers_config, to_diffusers
from fluxsmith.errors import UserError
from fluxsmith.storage.tensor_files import write_tensors


def save_vae_folder(folder, autoencoder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(diffusers_config(autoencoder)))
    weights = to_diffusers(autoencoder.network)
    write_tensors(folder / "diffusion_pytorch_model.safetensors", weights, {})


def test_a_file_and_a_diffusers_folder_give_the_same_autoencoder(tmp_path):
    file = save_autoencoder(tmp_path / "ae.safetensors")
    save_vae_folder(tmp_path / "model" / "vae", tiny_autoencoder())
    found = [read_autoencoder(path) for path in (file, tmp_path / "model", tmp_path / "model/vae")]
    assert len({autoencoder.digest for autoencoder in found}) == 1
    assert found[0].network.params == TINY
    assert (found[0].factor, found[0].channels, found[0].image_channels) == (4, 4, 3)
    assert (found[0].shift, found[0].scale) == (SHIFT, SCALE)


def test_another_shift_and_scale_travel_with_the_weights(tmp_path):
    own = tiny_autoencoder(shift=0.25, scale=2.0)
    write_tensors(tmp_path / "ae.safetensors", own.network.state_dict(), file_metadata(own))
    save_vae_folder(tmp_path / "vae", own)
    for path in (tmp_path / "ae.safetensors", tmp_path / "vae"):
        read = read_autoencoder(path)
        assert (read.shift, read.scale) == (0.25, 2.0)
        assert read.digest == own.digest != tiny_autoencoder().digest


def test_weights_of_lower_precision_are_computed_with_in_float32_and_never_learn(tmp_path):
    state = tiny_network().state_dict()
    write_tensors(tmp_path / "ae.safetensors", state, {}, torch.float16)
    read = read_autoencoder(tmp_path / "ae.safetensors")
    kinds = {(p.dtype, p.requires_grad) for p in read.network.parameters()}
    assert kinds == {(torch.float32, False)}
    assert not read.network.training
    images = torch.rand(1, 3, 16, 16)
    latents = read.encode(images)
    assert not latents.requires_grad
    assert 0 < (latents - tiny_autoencoder().encode(images)).abs().max() < 0.01


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decoder.mid.attn_1.q.bias": None}, r"Missing key.*decoder\.mid\.attn_1\.q\.bias"),
        ({"encoder.conv_in.weight": None}, r"hold FLUX\.1's autoencoder .*encoder\.conv_in"),
        (
            {"decoder.conv_out.weight": torch.zeros(7, 32, 3, 3)},
            r"mismatch for decoder\.conv_out\.weight",
        ),
        ({"quant_conv.weight": torch.ones(1)}, r"Unexpected key.*quant_conv\.weight"),
        (None, r"no weights at .*x\.safetensors"),
    ],
)
def test_files_that_are_no_autoencoder_are_named(tmp_path, change, said):
    if change is not None:
        weights = tiny_network().state_dict() | change
        there = {name: tensor for name, tensor in weights.items() if tensor is not None}
        write_tensors(tmp_path / "x.safetensors", there, {})
    with pytest.raises(UserError, match=said):
        read_autoencoder(tmp_path / "x.safetensors")
