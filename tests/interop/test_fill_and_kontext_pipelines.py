"""FLUX.1 Fill, FLUX.1 Kontext and negative prompts against diffusers' own pipelines, on miniature
components: same noise, same prompts, same steps."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from test_against_flux_pipeline import (
    PROMPTS,
    TOKENS,
    arguments,
    assert_same,
    made,
    noise,
    ours,
    text_folder,  # noqa: F401  (a fixture)
    theirs,
)

from fluxsmith import Pipeline
from fluxsmith.errors import UserError
from fluxsmith.interop.importing import import_model
from fluxsmith.model.tokens import patchify
from fluxsmith.randomness import generator
from fluxsmith.sampling.edit import Edit
from fluxsmith.sampling.generate import Sampler

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

SIZE = 32, 48
NEGATIVE = "a blue three"


@pytest.fixture
def model(toy, tmp_path, text_folder):  # noqa: F811
    """model(conditioning, dev) is our config and the exported folder."""

    def model(conditioning, dev=True):
        more = f"model.conditioning={conditioning}"
        return made(toy, tmp_path, text_folder, dev, more)

    return model


def picture(*size):
    return torch.rand(3, *size, generator=generator("picture")) * 2 - 1


def drawn(config, folder, **settings):
    """The latents of our pictures."""
    pipeline, seen = ours(config, folder)
    Sampler(pipeline).generate(PROMPTS, steps=4, seed=5, size=SIZE, **settings)
    return seen[0]


@pytest.mark.parametrize("strength", [1.0, pytest.param(0.6, marks=pytest.mark.slow)])
def test_fill(model, strength):
    config, folder = model("fill")
    pipe = theirs(diffusers.FluxFillPipeline, folder)
    assert pipe.transformer.config.in_channels == 4 * (4 + 4 + 16)
    encode = pipe.vae.encode  # the posterior's mean, as ours, in place of a draw
    pipe.vae.encode = lambda x: SimpleNamespace(latents=encode(x).latent_dist.mode())
    image, mask = picture(*SIZE), torch.zeros(1, *SIZE)
    mask[:, 8:23, :19] = 1  # not along the edges of latents
    expected = pipe(
        image=(image[None] + 1) / 2,
        mask_image=mask[None],
        strength=strength,
        generator=[generator(5, "image", i) for i in range(len(PROMPTS))],  # our noise
        **arguments(config, *SIZE),
    ).images
    found = drawn(config, folder, edit=Edit(image, strength, mask))
    assert_same(found, expected, *SIZE)
    without = drawn(config, folder, edit=Edit(image, strength, torch.ones_like(mask)))
    assert (found - without).abs().mean() > 1e-3  # the picture around the hole counts


@pytest.mark.parametrize(
    ("size", "true_guidance"),
    [(SIZE, 1.0), pytest.param((48, 40), 2.5, marks=pytest.mark.slow)],
    ids=["same size", "another size, away from a prompt"],
)
def test_kontext(model, size, true_guidance):
    config, folder = model("kontext")
    pipe = theirs(diffusers.FluxKontextPipeline, folder)
    expected = pipe(
        image=(picture(*size)[None] + 1) / 2,
        latents=patchify(noise(*SIZE), 2),
        max_area=SIZE[0] * SIZE[1],
        _auto_resize=False,
        true_cfg_scale=true_guidance,
        negative_prompt=[NEGATIVE] * len(PROMPTS),
        **arguments(config, *SIZE),
    ).images
    more = {} if true_guidance == 1 else {"negative_prompt": NEGATIVE}
    edit = Edit(picture(*size))
    found = drawn(config, folder, edit=edit, true_guidance=true_guidance, **more)
    assert_same(found, expected, *SIZE)
    other = drawn(config, folder, edit=Edit(-edit.image))
    assert (found - other).abs().mean() > 1e-3


@pytest.mark.parametrize(
    "dev", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["dev", "schnell"]
)
def test_a_negative_prompt(model, dev):
    """Beside an embedded scale, and as the only guidance that there is."""
    config, folder = model("text", dev)
    pipe = theirs(diffusers.FluxPipeline, folder)
    expected = pipe(
        latents=patchify(noise(*SIZE), 2),
        true_cfg_scale=2.5,
        negative_prompt=[NEGATIVE] * len(PROMPTS),
        **arguments(config, *SIZE),
    ).images
    scale = {"true_guidance": 2.5} if dev else {"guidance": 2.5}
    assert_same(drawn(config, folder, negative_prompt=NEGATIVE, **scale), expected, *SIZE)


@pytest.mark.parametrize("conditioning", ["fill", pytest.param("kontext", marks=pytest.mark.slow)])
def test_an_imported_folder_says_what_it_is_given(model, tmp_path, conditioning):
    config, folder = model(conditioning)
    foreign = tmp_path / "foreign"
    shutil.copytree(folder, foreign)
    shutil.rmtree(foreign / "fluxsmith")
    import_model(foreign, tmp_path / "back.pt", overrides=[f"text.t5_tokens={TOKENS}"])
    pipeline = Pipeline.from_checkpoint(tmp_path / "back.pt", "cpu")
    assert pipeline.config.model.conditioning == conditioning
    mask = torch.ones(1, *SIZE) if conditioning == "fill" else None
    edit = Edit(picture(*SIZE), mask=mask)
    back, there = (
        Sampler(p).generate(PROMPTS, steps=2, seed=1, size=SIZE, guidance=3.5, edit=edit)
        for p in (pipeline, ours(config, folder)[0])
    )
    assert torch.equal(back, there)
    with pytest.raises(UserError, match=f"model.conditioning={conditioning}.*--init-image"):
        Sampler(pipeline).generate(PROMPTS, steps=2, size=SIZE)
