"""Configs for weights that come without one: what is derived, and what has to be said."""

from pathlib import Path

import pytest
import torch
from flux_at_random import flux_at_random, tiny_params
from safetensors.torch import save_file
from test_xdiffusion import save as save_xdiffusion
from tiny_autoencoder import tiny_network

from fluxsmith.config.reading import build_config
from fluxsmith.errors import UserError
from fluxsmith.interop.importing import import_model
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.tensor_files import write_tensors

SCHNELL = Path(__file__).parents[2] / "configs" / "flux1" / "schnell.yaml"
FLUX_WIDTHS = {
    "in_channels": 64,
    "context_in_dim": 4096,
    "vec_in_dim": 768,
    "hidden_size": 128,
    "num_heads": 1,
    "axes_dim": (16, 56, 56),
}
AE = "autoencoder.weights=ae.safetensors"


def save_bfl(folder, **sizes):
    weights = flux_at_random(tiny_params(**sizes)).state_dict()
    save_file(weights, folder / "flux.safetensors")
    return folder / "flux.safetensors"


def imported(source, folder, *overrides, config=None):
    """The config of the checkpoint that importing gives."""
    import_model(source, folder / "out.pt", config, overrides)
    contents = checkpoints.load(folder / "out.pt")
    return build_config(contents["config"], "out.pt")


@pytest.mark.parametrize("guidance_embed", [False, True])
def test_flux1s_file_says_what_it_is(tmp_path, guidance_embed):
    source = save_bfl(tmp_path, guidance_embed=guidance_embed, **FLUX_WIDTHS)
    config = imported(source, tmp_path, AE)
    assert (config.autoencoder.kind, config.model.patch_size) == ("flux", 2)
    assert config.model.axes_dim == [16, 56, 56]
    assert (config.text.encoder, config.text.padding) == ("clip_t5", "full")
    assert config.text.t5 == "google/t5-v1_1-xxl"
    assert config.text.t5_tokens == (512 if guidance_embed else 256)
    expected = ("embedded", "flux", 3.5) if guidance_embed else ("cfg", "uniform", 1.0)
    sample = config.sample
    assert (sample.guidance_method, sample.schedule, sample.guidance) == expected


def test_the_autoencoder_of_latents_has_to_be_named(tmp_path):
    source = save_bfl(tmp_path, **FLUX_WIDTHS)
    with pytest.raises(UserError, match=r"autoencoder\.weights: missing"):
        imported(source, tmp_path)


def test_a_checkpoint_of_the_lesson_says_what_it_is(tmp_path):
    """Its own config tells the patch and the axes; it attends to 128 padded tokens."""
    sizes = {"context_in_dim": 768, "vec_in_dim": 768}
    network = flux_at_random(tiny_params(**sizes))
    config = imported(save_xdiffusion(tmp_path / "diffusion-10000.pt", network), tmp_path)
    assert checkpoints.load(tmp_path / "out.pt")["step"] == 10000
    assert config.model.axes_dim == [4, 6, 6]
    assert (config.data.source, config.data.image_size, config.data.channels) == ("mnist", 32, 1)
    assert (config.model.patch_size, config.autoencoder.kind) == (2, "pixel")
    text = config.text
    assert (text.t5, text.t5_tokens, text.padding) == ("google/t5-v1_1-base", 128, "full")


def test_a_given_config_holds(tmp_path):
    source = save_bfl(tmp_path, in_channels=64, context_in_dim=4096, vec_in_dim=768)
    sizes = ("model.hidden_size=32", "model.num_heads=2", "model.axes_dim=[4, 6, 6]")
    depths = ("model.depth=2", "model.depth_single_blocks=2")
    config = imported(source, tmp_path, *sizes, *depths, config=SCHNELL)
    assert config.name == "flux1-schnell"
    assert config.model.depth == 2
    (tmp_path / "out.pt").unlink()
    with pytest.raises(UserError, match="made with depth 2, here 3"):
        imported(source, tmp_path, *sizes, *depths, "model.depth=3", config=SCHNELL)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (FLUX_WIDTHS | {"context_in_dim": 100}, r"text tokens 100 wide.*--config"),
        ({}, r"heads are 16 wide.*--config"),
        (FLUX_WIDTHS | {"context_in_dim": 768, "in_channels": 50}, "50 features a token"),
    ],
)
def test_what_no_tensor_tells_has_to_be_said(tmp_path, sizes, said):
    with pytest.raises(UserError, match=said):
        imported(save_bfl(tmp_path, **sizes), tmp_path)
    assert not (tmp_path / "out.pt").exists()
    with pytest.raises(UserError, match=r"let its name end with \.pt"):
        import_model(tmp_path / "flux.safetensors", tmp_path / "out")


def test_a_file_that_holds_all_names_itself(tmp_path):
    """And a folder its own parts, by the test of a moved export."""
    network = flux_at_random(tiny_params(**FLUX_WIDTHS)).state_dict()
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in network.items()}
    tensors |= {f"vae.{name}": tensor for name, tensor in tiny_network().state_dict().items()}
    clip, t5 = "text_encoders.clip_l.transformer.text_model.", "text_encoders.t5xxl.transformer."
    tensors[f"{clip}embeddings.token_embedding.weight"] = torch.zeros(2, 2)
    tensors[f"{t5}encoder.block.0.layer.0.SelfAttention.q.weight"] = torch.zeros(2, 2)
    path = tmp_path / "all.safetensors"
    write_tensors(path, tensors, {})
    config = imported(path, tmp_path)
    assert config.autoencoder.weights == config.text.clip == config.text.t5 == str(path)
