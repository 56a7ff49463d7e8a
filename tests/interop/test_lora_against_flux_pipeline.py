"""A LoRA at FLUX.1's form in miniature: diffusers loads our file and draws what we draw; and a LoRA
that diffusers saves draws here what it draws there."""

from dataclasses import replace

import pytest
import torch
from helpers import assert_agree
from safetensors.torch import load_file
from test_against_flux_pipeline import PROMPTS, arguments, made, noise, ours, theirs
from test_lora_formats import random_changes
from tiny_encoders import save_flux_text

from fluxsmith.adapters.layers import add_changes
from fluxsmith.adapters.low_rank import LowRank
from fluxsmith.config.reading import build_config, with_overrides
from fluxsmith.interop.lora_files import read_lora, write_lora
from fluxsmith.interop.open_pipeline import TextToImage
from fluxsmith.model.tokens import patchify, unpatchify
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.run import train

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
SIZE = (32, 48)


@pytest.fixture(params=["schnell", "dev"])
def model(request, toy, tmp_path):
    text = save_flux_text(tmp_path / "text")
    return made(toy, tmp_path, text, dev=request.param == "dev")


def latents_of_ours(config, folder, changes):
    pipeline, seen = ours(config, folder)
    add_changes(pipeline.network, changes)
    Sampler(pipeline).generate(PROMPTS, steps=4, seed=5, size=SIZE)
    return seen[0]


def latents_of_theirs(config, pipe):
    packed = pipe(latents=patchify(noise(*SIZE), 2), **arguments(config, *SIZE)).images
    return unpatchify(packed, 2, SIZE[0] // 4, SIZE[1] // 4)


@pytest.mark.parametrize(
    ("dtype", "alpha"), [(torch.float32, 1.0), (torch.bfloat16, 1.0), (torch.bfloat16, 1.4)]
)
def test_diffusers_draws_the_same_with_our_file(model, tmp_path, dtype, alpha):
    """Whatever the scale, also where diffusers leaves what the metadata say of an alpha."""
    config, folder = model
    params = ours(config, folder)[0].network.params
    changes = random_changes(params, rank=2, alpha=alpha)
    changes = [replace(c, down=c.down.to(dtype), up=c.up.to(dtype)) for c in changes]
    changes[3:5] = [of_twice_the_rank(change) for change in changes[3:5]]
    write_lora(tmp_path / "lora.safetensors", changes, "diffusers")
    pipe = theirs(diffusers.FluxPipeline, folder)
    before = latents_of_theirs(config, pipe)
    pipe.load_lora_weights(str(tmp_path / "lora.safetensors"))
    with_lora = latents_of_theirs(config, pipe)
    assert (with_lora - before).abs().mean() > 0.05
    assert_agree(latents_of_ours(config, folder, changes), with_lora, within=1e-4)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(load_file(tmp_path / "lora.safetensors"))  # without its metadata
    assert_agree(latents_of_theirs(config, pipe), with_lora, within=1e-4)


def test_a_lora_that_diffusers_saves_draws_the_same_here(model, tmp_path):
    """With an alpha that is not the rank, which its metadata alone tell."""
    config, folder = model
    pipe = theirs(diffusers.FluxPipeline, folder)
    names = ["to_q", "to_k", "to_v", "add_k_proj", "to_out.0", "ff.net.0.proj", "proj_out"]
    settings = peft.LoraConfig(r=3, lora_alpha=7, target_modules=names, init_lora_weights=False)
    torch.manual_seed(0)
    pipe.transformer.add_adapter(settings)
    expected = latents_of_theirs(config, pipe)
    pipe.transformer.save_lora_adapter(tmp_path / "theirs")
    lora = read_lora(tmp_path / "theirs")
    assert {change.scale for change in lora.changes} == {7 / 3}
    assert_agree(latents_of_ours(config, folder, lora.changes), expected, within=1e-4)
    without = latents_of_ours(config, folder, [])
    assert (expected - without).abs().mean() > 0.05


def test_a_lora_trained_over_flux1s_form_draws_the_same_in_diffusers(toy, tmp_path):
    """Over a folder's weights, with its guidance input, latents, CLIP and T5, all of which stay as
    they are."""
    text = save_flux_text(tmp_path / "text")
    settings = ("train.adapter={kind: lora, rank: 2, targets: [all]}", "train.learning_rate=0.05")
    config, folder = made(toy, tmp_path, text, True, "train.ema_decay=0", *settings[1:])
    start = [f"train.init_from={folder}", *settings]
    data = with_overrides(config.model_dump(), start)
    assert train(build_config(data, "the test")) == 0
    run = tmp_path / "run"
    state = checkpoints.load(checkpoints.newest(run))
    assert {name.rpartition(".")[2] for name in state["model"]} == {"lora_A", "lora_B"}
    assert any("guidance_in" in name for name in state["model"])
    lora = read_lora(run)
    write_lora(tmp_path / "lora.safetensors", lora.changes, "diffusers", lora.metadata)
    pipe = theirs(diffusers.FluxPipeline, folder)
    before = latents_of_theirs(config, pipe)
    pipe.load_lora_weights(str(tmp_path / "lora.safetensors"))
    with_lora = latents_of_theirs(config, pipe)
    assert (with_lora - before).abs().mean() > 0.01
    drawn, seen = TextToImage.from_checkpoint(checkpoints.newest(run), "cpu"), []
    decode = drawn.autoencoder.decode
    drawn.autoencoder.decode = lambda x: seen.append(x) or decode(x)
    Sampler(drawn).generate(PROMPTS, steps=4, seed=5, size=SIZE)
    assert_agree(seen[0], with_lora, within=1e-4)


def of_twice_the_rank(change):
    """Another change, since a file's layers may have ranks of their own."""
    down, up = torch.cat((change.down, change.down)), torch.cat((change.up, 0 * change.up + 1), 1)
    return LowRank(change.layer, down, up, change.scale, change.start)
