"""Students of latent models with FLUX.1's schedule and encoders, in miniature: exported, they draw
in diffusers' FluxPipeline what they draw here."""

import pytest
import torch
from distillation.making import flow_matching_of_the_critic, trainer_of
from helpers import assert_agree, randomise
from tiny_autoencoder import save_autoencoder
from tiny_encoders import save_flux_text

from fluxsmith import Pipeline
from fluxsmith.distillation.students import student_config
from fluxsmith.flow.solvers import euler, uniform_grid
from fluxsmith.interop.exporting import export
from fluxsmith.model.tokens import patchify, unpatchify
from fluxsmith.randomness import generator, image_noise
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.run import build_trainer, train

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

PROMPTS = ["3", "three"]
TOKENS = 24
SIZE = 16


@pytest.fixture
def teacher(toy, tmp_path, request):
    """A latent model of random weights, with a guidance input (dev) or without."""
    dev, text = request.param == "dev", save_flux_text(tmp_path / "text")
    config = toy(
        "data.channels=3",
        "text={encoder: clip_t5, padding: full, cache: memory}",
        f"text.clip={text}",
        f"text.t5={text}",
        f"text.t5_tokens={TOKENS}",
        "autoencoder.kind=flux",
        f"autoencoder.weights={save_autoencoder(tmp_path / 'ae.safetensors')}",
        "model.patch_size=2",
        f"model.guidance_embed={dev}",
        f"sample.guidance_method={'embedded' if dev else 'cfg'}",
        "sample.schedule=flux",
        f"sample.guidance={3.5 if dev else 2}",
        f"output_dir={tmp_path / 'latent'}",
    )
    trainer = build_trainer(config, torch.device("cpu"))
    randomise(trainer.pipeline.network)
    trainer.ema.load(trainer.pipeline.state_dict())
    trainer.folder.mkdir()
    checkpoints.save(trainer.folder / "diffusion-1.pt", trainer.state_dict())
    return trainer.folder


@pytest.mark.parametrize(
    ("teacher", "steps"), [("plain", 4), ("dev", 4), ("plain", None)], indirect=["teacher"]
)
def test_a_student_draws_the_same_in_diffusers(teacher, steps, tmp_path):
    quick = "train.steps=2", "train.batch_size=4", "objective.trajectories=64"
    config = student_config(teacher, steps, [*quick, "train.sample_every=0"])
    assert train(config) == 0
    path = checkpoints.newest(teacher.parent / config.resolved_output_dir)
    export(path, tmp_path / "model", "diffusers", samples=False)
    pipe = diffusers.FluxPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.config.guidance_embeds == (steps is None)

    pipeline = Pipeline.from_checkpoint(path)
    noise = image_noise(pipeline.latent_shape, 5, range(len(PROMPTS)))
    sample = pipeline.config.sample
    expected = pipe(
        PROMPTS,
        latents=patchify(noise, 2),
        height=SIZE,
        width=SIZE,
        num_inference_steps=sample.steps,
        guidance_scale=sample.guidance,
        max_sequence_length=TOKENS,
        output_type="latent",
    ).images
    seen = []
    decode = pipeline.autoencoder.decode
    pipeline.autoencoder.decode = lambda x: seen.append(x) or decode(x)
    Sampler(pipeline).generate(PROMPTS, seed=5)
    theirs = unpatchify(expected, 2, *pipeline.latent_shape[1:])
    assert theirs.std() > 0.3
    assert_agree(seen[0], theirs, within=1e-4)


@pytest.mark.parametrize("teacher", ["plain"], indirect=True)
def test_latents_are_matched_as_large_as_they_are(teacher):
    """Pixels are clamped, as they are when they are drawn; latents aren't."""
    brief = "train.init_from=null", "train.batch_size=3"
    trainer = trainer_of(teacher, 1, *brief, match=True)
    objective, student = trainer.objective, trainer.pipeline
    example = objective.draw(trainer.next_batch(), generator(0, "test"))
    noise, captions = example.batch.images, example.batch.captions
    with torch.no_grad():
        cond = student.encode_text(captions)
        drawn = euler(lambda x, t: student.velocity(x, t, cond), noise, uniform_grid(1))
        assert (drawn.abs() > 1).float().mean() > 0.1
        found = objective.losses(objective.prepare(example)).terms["critic"]
    expected = flow_matching_of_the_critic(objective, example, drawn)
    assert_agree(found, expected, 1e-4)
