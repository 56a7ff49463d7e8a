"""A LoRA at FLUX.1's form in miniature: diffusers loads our file and draws what we draw; and a LoRA
that diffusers saves draws here what it draws there."""

import pytest
import torch
from helpers import assert_agree
from test_against_flux_pipeline import PROMPTS, arguments, made, noise, ours, theirs
from test_lora_formats import random_changes
from tiny_encoders import save_flux_text

from fluxsmith.adapters.layers import add_changes
from fluxsmith.adapters.low_rank import LowRank
from fluxsmith.interop.lora_files import read_lora, write_lora
from fluxsmith.model.tokens import patchify, unpatchify
from fluxsmith.sampling.generate import Sampler

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


def test_diffusers_draws_the_same_with_our_file(model, tmp_path):
    config, folder = model
    params = ours(config, folder)[0].network.params
    changes = random_changes(params, rank=2, alpha=1.0)
    changes[3:5] = [of_twice_the_rank(change) for change in changes[3:5]]
    write_lora(tmp_path / "lora.safetensors", changes, "diffusers")
    pipe = theirs(diffusers.FluxPipeline, folder)
    before = latents_of_theirs(config, pipe)
    pipe.load_lora_weights(str(tmp_path / "lora.safetensors"))
    with_lora = latents_of_theirs(config, pipe)
    assert (with_lora - before).abs().mean() > 0.05
    found = latents_of_ours(config, folder, read_lora(tmp_path / "lora.safetensors").changes)
    assert_agree(found, with_lora, within=1e-4)


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


def of_twice_the_rank(change):
    """Another change, since a file's layers may have ranks of their own."""
    down, up = torch.cat((change.down, change.down)), torch.cat((change.up, 0 * change.up + 1), 1)
    return LowRank(change.layer, down, up, change.scale, change.start)
