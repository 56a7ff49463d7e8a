"""A model that lives in the latents of an autoencoder: everything above it stays as it was."""

from pathlib import Path

import pytest
import torch
from helpers import same
from tiny_autoencoder import save_autoencoder

from fluxsmith import Pipeline
from fluxsmith.data.images import to_unit
from fluxsmith.errors import UserError
from fluxsmith.evaluation.measurement import during_training
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.recorder import read_metrics
from fluxsmith.training.run import build_trainer, train


@pytest.fixture
def latent(toy, tmp_path):
    """The toy config over latents of 4 channels at a quarter of the pixels' resolution."""
    weights = save_autoencoder(tmp_path / "ae.safetensors")
    settings = (
        "data.channels=3",
        "autoencoder.kind=flux",
        f"autoencoder.weights={weights}",
        "model.patch_size=2",
        "sample.guidance=1",
    )
    return lambda *overrides: toy(*settings, *overrides)


def test_widths_and_sizes_follow_from_the_autoencoder(latent):
    pipeline = Pipeline.build(latent())
    assert pipeline.latent_shape == (4, 4, 4)
    assert pipeline.image_tokens(pipeline.latent_shape) == 4
    assert pipeline.network.params.in_channels == 4 * 2 * 2
    assert pipeline.generate(["3", "4"], steps=1).shape == (2, 3, 16, 16)


def test_the_loss_is_taken_between_latents(latent):
    trainer = build_trainer(latent(), torch.device("cpu"))
    example = trainer.objective.draw(trainer.loader.batch(0), torch.Generator().manual_seed(0))
    assert example.eps.shape[1:] == (4, 4, 4)
    x0 = trainer.pipeline.autoencoder.encode(example.batch.images).bfloat16().float()
    inputs = trainer.objective.prepare(example)
    losses = trainer.objective.losses(inputs)  # a new network predicts 0
    expected = (example.eps - x0).square().mean((1, 2, 3))
    torch.testing.assert_close(losses.total, expected)


@pytest.mark.slow
def test_it_learns_is_resumed_to_the_bit_and_draws(latent, tmp_path):
    plan = ("train.steps=40", "train.checkpoint_every=20", "train.learning_rate=0.003")
    plan += ("train.sample_every=20", "evaluate.every=20")
    config = latent(*plan)
    assert train(config, evaluate=lambda: during_training(config)) == 0
    folder = Path(config.output_dir)
    records = read_metrics(folder / "metrics.jsonl")
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    whole = checkpoints.load(folder / "diffusion-40.pt")
    assert not any("encoder" in name for name in whole["model"] if not name.startswith("text."))
    picture = (folder / "sample-40.png").read_bytes()

    (folder / "diffusion-40.pt").unlink()
    assert train(config, resume="auto", evaluate=lambda: during_training(config)) == 0
    again = checkpoints.load(folder / "diffusion-40.pt")
    for key in ("model", "ema", "optimizer", "window", "data", "metadata"):
        assert same(again[key], whole[key]), key
    assert (folder / "sample-40.png").read_bytes() == picture

    pipeline = Pipeline.from_checkpoint(folder / "diffusion-40.pt", device="cpu")
    drawn = pipeline.generate(["3"], steps=2, seed=1)
    assert torch.equal(drawn, pipeline.generate(["3"], steps=2, seed=1))
    assert drawn.shape == (1, 3, 16, 16)


def test_encoding_after_decoding_is_what_the_flow_sees(latent):
    """Shift and scale are undone on the way back: latents are decoded as they were encoded."""
    autoencoder = Pipeline.build(latent()).autoencoder
    images = to_unit(torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8))
    moments = autoencoder.network.encoder(images)
    expected = autoencoder.network.decoder(moments[:, :4])
    decoded = autoencoder.decode(autoencoder.encode(images))
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-4)


def test_another_autoencoder_is_refused(latent, tmp_path):
    config = latent("train.steps=1")
    train(config)
    path = Path(config.output_dir) / "diffusion-1.pt"
    save_autoencoder(tmp_path / "ae.safetensors", seed=1)  # other weights under the same name
    for use in (
        lambda: Pipeline.from_checkpoint(path),
        lambda: train(latent("train.steps=2"), resume=str(path)),
        lambda: train(latent(f"output_dir={tmp_path / 'new'}"), fork=path),
    ):
        with pytest.raises(UserError, match=r"autoencoder\.weights: .* trained with"):
            use()


def test_the_autoencoder_may_have_moved(latent, tmp_path):
    """Where the file lies is no part of the model: its digest is."""
    config = latent("train.steps=1")
    train(config)
    moved = (tmp_path / "ae.safetensors").rename(tmp_path / "moved.safetensors")
    assert train(latent("train.steps=2", f"autoencoder.weights={moved}"), resume="auto") == 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.channels=1", r"data\.channels=1: .* takes images of 3"),
        ("data.image_size=20", r"data\.image_size=20: not divisible by 8.*use 16 or 24"),
        ("autoencoder.kind=pixel", r"autoencoder\.weights=.*kind=pixel has no weights"),
        ("autoencoder.weights=null", r"autoencoder\.weights: missing"),
        ("autoencoder.weights=nowhere.safetensors", r"no weights at nowhere\.safetensors"),
    ],
)
def test_what_does_not_fit_is_named(latent, override, said):
    with pytest.raises(UserError, match=said):
        Pipeline.build(latent(override))


def test_the_likelihood_of_latents_is_not_measured(latent):
    from fluxsmith.evaluation.evaluators import EVALUATORS
    from fluxsmith.evaluation.samples import Reference, Samples, Settings
    from fluxsmith.sampling.generate import Sampler

    config = latent()
    samples = Samples(Sampler(Pipeline.build(config)), Reference(config), Settings())
    with pytest.raises(UserError, match="says nothing about images"):
        EVALUATORS["likelihood"].measure(samples)
