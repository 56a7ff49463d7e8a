"""Autoencoders from files, and what is said of files that are none."""

import json

import pytest
import torch
from tiny_autoencoder import TINY, save_autoencoder, tiny_autoencoder, tiny_network

from fluxsmith.autoencoder.flux_ae import SCALE, SHIFT
from fluxsmith.autoencoder.flux_files import (
    diffusers_config,
    file_metadata,
    from_diffusers,
    read_autoencoder,
    to_diffusers,
)
from fluxsmith.errors import UserError
from fluxsmith.tensorfile import write_tensors


def save_vae_folder(folder, autoencoder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(diffusers_config(autoencoder)))
    name = "diffusion_pytorch_model.safetensors"
    write_tensors(folder / name, to_diffusers(autoencoder.network), {})
    return folder


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


def test_names_of_diffusers_and_back_are_inverse():
    network = tiny_network()
    back = from_diffusers(to_diffusers(network), "here")
    assert back.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(back[name], tensor), name


def test_weights_of_lower_precision_are_computed_with_in_float32(tmp_path):
    halves = {name: t.half() for name, t in tiny_network().state_dict().items()}
    write_tensors(tmp_path / "ae.safetensors", halves, {})
    read = read_autoencoder(tmp_path / "ae.safetensors")
    assert {p.dtype for p in read.network.parameters()} == {torch.float32}
    images = torch.rand(1, 3, 16, 16)
    difference = read.encode(images) - tiny_autoencoder().encode(images)
    assert 0 < difference.abs().max() < 0.01


def test_nothing_of_it_learns():
    autoencoder = tiny_autoencoder()
    assert not any(p.requires_grad for p in autoencoder.network.parameters())
    assert not autoencoder.encode(torch.rand(1, 3, 8, 8)).requires_grad
    assert not autoencoder.network.training


def _missing(weights):
    del weights["decoder.mid.attn_1.q.bias"]


def _flux(weights):
    weights.clear()
    weights["double_blocks.0.img_attn.qkv.weight"] = torch.zeros(2, 2)


def _wrong_shape(weights):
    weights["decoder.conv_out.weight"] = torch.zeros(7, 32, 3, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_missing, r"1 tensors don't fit, first decoder\.mid\.attn_1\.q\.bias"),
        (_flux, r"not FLUX\.1's autoencoder .*encoder\.conv_in"),
        (_wrong_shape, r"first decoder\.conv_out\.weight"),
    ],
)
def test_files_that_are_no_autoencoder_are_named(tmp_path, change, said):
    weights = dict(tiny_network().state_dict())
    change(weights)
    write_tensors(tmp_path / "x.safetensors", weights, {})
    with pytest.raises(UserError, match=said):
        read_autoencoder(tmp_path / "x.safetensors")


def test_an_autoencoder_of_stable_diffusion_is_named(tmp_path):
    weights = to_diffusers(tiny_network()) | {"quant_conv.weight": torch.zeros(1)}
    write_tensors(tmp_path / "x.safetensors", weights, {})
    with pytest.raises(UserError, match="quant_conv, such as Stable Diffusion's"):
        read_autoencoder(tmp_path / "x.safetensors")


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no weights at .*ae\.safetensors"):
        read_autoencoder(tmp_path / "ae.safetensors")
