"""A run in batches of several shapes, in pixels and in latents, from memory and from a stream."""

import pytest
import torch
from helpers import same
from made_pictures import as_folder, as_shards, of_sizes
from tiny_autoencoder import save_autoencoder

from fluxsmith import Pipeline
from fluxsmith.errors import UserError
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.run import build_trainer, train

SIZES = [(16, 16)] * 9 + [(24, 10)] * 5 + [(10, 26)] * 4


@pytest.fixture
def in_buckets(toy, tmp_path):
    """in_buckets(source, *overrides): the toy config on pictures of three shapes."""

    def config(source: str, *overrides: str):
        made, folder = of_sizes(SIZES), tmp_path / "pictures"
        path = as_folder(folder, made, "txt") if source == "folder" else as_shards(folder, made, 2)
        data = f"{{source: {source}, path: '{path}', image_size: 16, channels: 3, buckets: auto,"
        data += " bucket_step: 8, bucket_aspect: 4, resize: center-crop, test_share: 0.0}"
        return toy("data=" + data, "evaluate.every=0", "train.batch_size=4", *overrides)

    return config


@pytest.mark.parametrize(
    ("source", "latents"),
    [
        ("folder", True),
        pytest.param("folder", False, marks=pytest.mark.slow),
        pytest.param("webdataset", True, marks=pytest.mark.slow),
        pytest.param("webdataset", False, marks=pytest.mark.slow),
    ],
)
def test_it_trains_resumes_to_the_bit_and_draws_any_shape(in_buckets, tmp_path, source, latents):
    if source == "webdataset":
        pytest.importorskip("webdataset")
    keys = ["train.steps=4", "train.checkpoint_every=2", "train.accumulate=2"]
    if latents:
        weights = save_autoencoder(tmp_path / "ae.safetensors")
        keys += ["autoencoder.kind=flux", f"autoencoder.weights={weights}", "model.patch_size=2"]
    config = in_buckets(source, *keys)
    shapes = set()
    trainer = build_trainer(config, torch.device("cpu"))
    for step in range(4):
        batch = trainer.loader.batch(step)
        example = trainer.objective.draw(batch, torch.Generator().manual_seed(0))
        assert example.eps.shape[1:] == trainer.pipeline.latent_shape_of(*batch.images.shape[2:])
        shapes.add(batch.images.shape[2:])
    assert len(shapes) > 1
    assert train(config) == 0
    whole = checkpoints.load(tmp_path / "run" / "diffusion-4.pt")
    (tmp_path / "run" / "diffusion-4.pt").unlink()
    assert train(config, resume="auto") == 0
    again = checkpoints.load(tmp_path / "run" / "diffusion-4.pt")
    for key in ("model", "ema", "optimizer", "data"):
        assert same(again[key], whole[key]), key
    pipeline = Pipeline.from_checkpoint(tmp_path / "run" / "diffusion-4.pt", device="cpu")
    for height, width in shapes:
        drawn = pipeline.generate(["x"], steps=1, size=(height, width))
        assert drawn.shape == (1, 3, height, width)


def test_a_step_of_buckets_must_fit_the_patches(in_buckets):
    with pytest.raises(UserError, match=r"data\.bucket_step=2: must be a multiple of 4"):
        build_trainer(in_buckets("folder", "data.bucket_step=2"), torch.device("cpu"))
