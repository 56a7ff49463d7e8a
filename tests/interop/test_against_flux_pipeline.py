"""The whole way from prompt to picture against diffusers' FluxPipeline, FluxImg2ImgPipeline and
FluxInpaintPipeline, on miniature components: same noise, same prompts, same steps."""

import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_agree, randomise
from test_exporting import save_checkpoint
from tiny_autoencoder import save_autoencoder
from tiny_encoders import save_flux_text

from fluxsmith import Pipeline
from fluxsmith.interop.exporting import export
from fluxsmith.interop.importing import import_model
from fluxsmith.interop.open_pipeline import open_released
from fluxsmith.model.tokens import patchify, unpatchify
from fluxsmith.randomness import generator, image_noise
from fluxsmith.sampling.edit import Edit
from fluxsmith.sampling.generate import Sampler

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

PROMPTS = ["a photo of the red seven", "three"]
TOKENS = 24


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    return save_flux_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(params=["schnell", "dev"])
def model(request, toy, tmp_path, text_folder):
    """(our config, the exported folder): with guidance input and shift, or with neither."""
    return made(toy, tmp_path, text_folder, dev=request.param == "dev")


def made(toy, tmp_path, text_folder, dev, *more):
    settings = [
        "data.channels=3",
        "text={encoder: clip_t5, padding: full, cache: memory}",
        f"text.clip={text_folder}",
        f"text.t5={text_folder}",
        f"text.t5_tokens={TOKENS}",
        "autoencoder.kind=flux",
        f"autoencoder.weights={save_autoencoder(tmp_path / 'ae.safetensors')}",
        "model.patch_size=2",
        f"model.guidance_embed={dev}",
        f"sample.guidance_method={'embedded' if dev else 'cfg'}",
        f"sample.schedule={'flux' if dev else 'uniform'}",
        f"sample.guidance={3.5 if dev else 1}",
    ]
    config = toy(*settings, *more)
    checkpoint = save_checkpoint(
        tmp_path / "diffusion-7.pt", randomise(Pipeline.build(config)).eval()
    )
    export(checkpoint, tmp_path / "model", "diffusers", samples=False)
    return config, tmp_path / "model"


def ours(config, folder, **options):
    """Our pipeline on the weights that diffusers reads, with a list that its latents end up in."""
    pipeline = open_released(config, folder, lambda _: PROMPTS, device="cpu", **options)
    seen = []
    decode = pipeline.autoencoder.decode
    pipeline.autoencoder.decode = lambda x: seen.append(x) or decode(x)
    return pipeline, seen


def theirs(kind, folder):
    pipe = kind.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(height, width):
    return image_noise((4, height // 4, width // 4), 5, range(len(PROMPTS)))


def arguments(config, height, width):
    sample = config.sample
    return {
        "prompt": PROMPTS,
        "height": height,
        "width": width,
        "num_inference_steps": 4,
        "guidance_scale": sample.guidance,
        "max_sequence_length": TOKENS,
        "output_type": "latent",
    }


def assert_same(latents, packed, height, width):
    expected = unpatchify(packed, 2, height // 4, width // 4)
    assert expected.std() > 0.3
    assert_agree(latents, expected, within=1e-4)


def test_a_model_that_never_saw_padding_is_no_whole_pipeline(toy, tmp_path, text_folder):
    _, folder = made(toy, tmp_path, text_folder, False, "text.padding=trim")
    assert not (folder / "model_index.json").exists()
    assert (folder / "prompts.safetensors").is_file()


def test_the_card_guides_as_the_samples_are_guided(toy, tmp_path, text_folder):
    _, folder = made(toy, tmp_path, text_folder, False, "sample.guidance=2.5")
    assert 'negative_prompt="", true_cfg_scale=2.5' in (folder / "README.md").read_text()
    (tmp_path / "dev").mkdir()
    _, folder = made(toy, tmp_path / "dev", text_folder, True)
    assert "guidance_scale=3.5" in (folder / "README.md").read_text()


@pytest.mark.parametrize(("height", "width"), [(32, 48), (64, 64)])
def test_text_to_image(model, height, width):
    config, folder = model
    pipe = theirs(diffusers.FluxPipeline, folder)
    x = patchify(noise(height, width), 2)
    call = arguments(config, height, width)
    expected = pipe(latents=x, **call).images
    pipeline, seen = ours(config, folder)
    pictures = Sampler(pipeline).generate(PROMPTS, steps=4, seed=5, size=(height, width))
    assert_same(seen[0], expected, height, width)
    assert (seen[0] - noise(height, width)).abs().mean() > 0.1

    decoded = pipe(latents=x, **call | {"output_type": "pt"}).images
    assert_agree((pictures + 1) / 2, decoded, within=1e-3)


@pytest.mark.parametrize("guidance", [1.0, 3.5, 4.0, 7.0])
def test_text_to_image_in_bfloat16(toy, tmp_path, text_folder, guidance):
    """Both round 1000 times the guidance scale to bfloat16, 3500 to 3504, before its embedding."""
    config, folder = made(toy, tmp_path, text_folder, True, f"sample.guidance={guidance}")
    pipe = diffusers.FluxPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    call = arguments(config, 32, 48)
    call["latents"] = patchify(noise(32, 48), 2).bfloat16()
    expected = pipe(**call).images.float()
    pipeline, seen = ours(config, folder, dtype="bfloat16")
    Sampler(pipeline).generate(PROMPTS, steps=4, seed=5, size=(32, 48))
    assert_agree(seen[0], unpatchify(expected, 2, 8, 12), within=0.1)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("kind", ["FluxImg2ImgPipeline", "FluxInpaintPipeline"])
def test_image_to_image_and_inpainting(model, kind, strength):
    config, folder = model
    pipe = theirs(getattr(diffusers, kind), folder)
    encode = pipe.vae.encode  # the posterior's mean, as ours, in place of a draw
    pipe.vae.encode = lambda x: SimpleNamespace(latents=encode(x).latent_dist.mode())
    image = torch.rand(3, 32, 48, generator=generator("picture")) * 2 - 1
    call = {"image": (image[None] + 1) / 2, "strength": strength}
    call["generator"] = [generator(5, "image", i) for i in range(len(PROMPTS))]  # our noise
    mask = None
    if kind == "FluxInpaintPipeline":
        mask = torch.zeros(1, 32, 48)
        mask[:, 8:24, :20] = 1
        call["mask_image"] = mask[None]
    expected = pipe(**call, **arguments(config, 32, 48)).images
    pipeline, seen = ours(config, folder)
    edit = Edit(image, strength, mask)
    Sampler(pipeline).generate(PROMPTS, steps=4, seed=5, size=(32, 48), edit=edit)
    assert_same(seen[0], expected, 32, 48)


def test_the_lines_of_the_card_draw(toy, tmp_path, text_folder):
    """Also with T5 in bfloat16, as FLUX.1's is, and the rest in float32."""
    _, folder = made(toy, tmp_path, text_folder, False, "text.t5_dtype=bfloat16")
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    found = {}
    exec(code.replace("FOLDER", str(folder)), found)
    assert found["image"].size == (16, 16)


def test_an_imported_pipeline_folder_needs_no_config(model, tmp_path):
    """What the folder says of itself is enough, the exporter's own notes taken away."""
    config, folder = model
    foreign = tmp_path / "foreign"
    shutil.copytree(folder, foreign)
    shutil.rmtree(foreign / "fluxsmith")
    import_model(foreign, tmp_path / "back.pt", overrides=[f"text.t5_tokens={TOKENS}"])
    pipeline = Pipeline.from_checkpoint(tmp_path / "back.pt", "cpu")
    expected = open_released(config, folder, lambda _: PROMPTS, device="cpu")
    guidance = config.sample.guidance
    drawn = [
        Sampler(p).generate(PROMPTS, steps=2, seed=1, size=(32, 32), guidance=guidance)
        for p in (pipeline, expected)
    ]
    assert torch.equal(*drawn)
