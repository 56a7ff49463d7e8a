"""Targets that are means over pictures of the same caption."""

from dataclasses import replace

import pytest
import torch
from helpers import randomise, same

from fluxsmith import Pipeline
from fluxsmith.cli import main
from fluxsmith.data import build_loader
from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.loader import MemoryLoader
from fluxsmith.data.peers import Peers
from fluxsmith.errors import UserError
from fluxsmith.flow.path import interpolate
from fluxsmith.randomness import generator
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.flow_matching import FlowMatching
from fluxsmith.training.objective import objective_of
from fluxsmith.training.run import build_trainer, train
from fluxsmith.training.stable_target import StableTarget

STABLE = ("objective.kind=stable_target", "objective.reference_batch=20", "evaluate.every=0")


@pytest.fixture
def made(toy):
    """An objective of the toy data, a batch of it, and what it draws and prepares."""
    config = toy(*STABLE)
    pipeline = randomise(Pipeline.build(config))
    loader = build_loader(config.data, 8, seed=1)
    objective = objective_of(config).build(config, pipeline)
    objective.see(loader)
    return objective, loader.batch(0)


def prepared(objective, batch, seed=0):
    return objective.prepare(objective.draw(batch, generator("stable", seed)))


def test_the_record_is_that_of_flow_matching_and_the_gradient_that_to_the_mean_velocity(made):
    objective, batch = made
    plain = FlowMatching(objective.pipeline, objective.density, objective.stratified)
    inputs = prepared(objective, batch)
    trained = [p for p in objective.pipeline.parameters() if p.requires_grad]

    losses = objective.losses(inputs)
    theirs = plain.losses(prepared(plain, batch))
    torch.testing.assert_close(losses.total, theirs.total)

    x_t, t = interpolate(inputs.x0, inputs.eps, inputs.t), inputs.t[:, None, None, None]
    error = objective.velocity(inputs)(x_t, inputs.t) - (x_t - inputs.mean) / t
    found = torch.autograd.grad(losses.total.mean(), trained, allow_unused=True)
    wanted = torch.autograd.grad(error.square().mean(), trained, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_targets_are_means_over_pictures_of_the_same_digit(made):
    """Near t = 1 nothing is known of a picture but its caption."""
    objective, batch = made
    example = objective.draw(batch, generator("stable", 0))
    example.noisy.t.fill_(1.0)
    mean = objective.prepare(example).mean
    for drawn in example.drawn:
        pictures = objective.peers.pictures(drawn).images
        for row in drawn.rows:
            wanted = torch.cat((batch.images[row : row + 1], pictures)).mean(0)
            torch.testing.assert_close(mean[row], wanted)


def test_held_out_pictures_of_unknown_captions_and_shapes_keep_their_own_targets(made):
    objective, batch = made
    unknown = replace(batch, captions=["a cat", *batch.captions[1:]])
    inputs = prepared(objective, unknown)
    assert torch.equal(inputs.mean[0], inputs.x0[0])
    assert not torch.equal(inputs.mean[1:], inputs.x0[1:])
    wide = replace(batch, images=torch.zeros(8, 1, 16, 32))
    inputs = prepared(objective, wide)
    assert torch.equal(inputs.mean, inputs.x0)


def test_micro_batches_have_the_targets_of_the_batch(made):
    objective, batch = made
    example = objective.draw(batch, generator("stable", 0))
    pieces = [objective.prepare(part).mean for part in example.split(4)]
    torch.testing.assert_close(torch.cat(pieces), objective.prepare(example).mean)


def captioned(ways, counts):
    """Pictures whose value is their label."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = labels.to(torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
    return ImageSet(images, labels, ways)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_peers_are_drawn_as_often_as_the_loader_gives_them(dropout, toy):
    """Of a caption that two labels have, one of them among others and in more pictures."""
    ways = (("a", "both"), ("both",), ("b", "b", "both", ""))
    settings = toy(f"data.caption_dropout={dropout}").data
    loader = MemoryLoader([captioned(ways, (30, 20, 40))], 90, 0, settings)
    seen = {}
    for step in range(400):
        batch = loader.batch(step)
        labels = ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()
        for caption, label in zip(batch.captions, labels, strict=True):
            seen.setdefault(caption, torch.zeros(3))[label] += 1
    peers = Peers(loader)
    for caption, counts in seen.items():
        one = type(batch)(batch.images[:1], [caption])
        (drawn,) = peers.draw(one, 20_000, generator("peers", caption))
        found = ((peers.pictures(drawn).images[:, 0, 0, 0] + 1) * 127.5).round().long()
        shares = found.bincount(minlength=3) / len(found)
        assert (shares - counts / counts.sum()).abs().max() < 0.02, caption


def test_captions_of_the_same_labels_share_their_draw_and_mirrored_pictures_are_peers(toy):
    images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    settings = toy("data.caption_dropout=0").data.model_copy(update={"flip": True})
    found = ImageSet(images, torch.zeros(1, dtype=torch.long), (("3", "three"),))
    loader = MemoryLoader([found], 2, 0, settings)
    peers = Peers(loader)
    batch = loader.batch(0)
    two = type(batch)(batch.images, ["three", "3"])
    (drawn,) = peers.draw(two, 1000, generator("peers"))
    assert drawn.rows == [0, 1]
    pictures = ((peers.pictures(drawn).images + 1) * 127.5).round().byte()
    plain = (pictures == images).flatten(1).all(1)
    mirrored = (pictures == images.flip(-1)).flatten(1).all(1)
    assert (plain | mirrored).all()
    assert 400 < mirrored.sum() < 600


def test_a_resumed_run_goes_on_exactly(toy, tmp_path):
    plan = (*STABLE, "train.steps=6", "train.checkpoint_every=3", "train.diagnose=false")
    whole = toy(*plan, f"output_dir={tmp_path / 'whole'}")
    assert train(whole) == 0
    half = tmp_path / "whole" / "diffusion-3.pt"
    trainer = build_trainer(whole, torch.device("cpu"))
    trainer.load_state_dict(checkpoints.load(half), str(half))
    while trainer.step < 6:
        trainer.train_step()
    last = checkpoints.load(tmp_path / "whole" / "diffusion-6.pt")
    assert same(trainer.pipeline.trained_state(), last["model"])


def test_latents_are_refused(toy):
    latents = toy(*STABLE, "autoencoder={kind: flux, weights: ae.safetensors}")
    with pytest.raises(UserError, match=r"is for pixels.*objective\.kind=flow_matching"):
        StableTarget.build(latents, Pipeline.build(toy()))


def test_pictures_that_are_read_as_needed_are_refused(toy):
    config = toy(*STABLE)
    objective = StableTarget.build(config, Pipeline.build(config))
    with pytest.raises(UserError, match=r"data\.in_memory=true, or objective\.kind=flow_matching"):
        objective.see(object())


def test_captions_of_one_picture_each_are_refused(toy):
    config = toy(*STABLE)
    objective = StableTarget.build(config, Pipeline.build(config))
    loader = MemoryLoader([captioned((("a",), ("b",)), (1, 1))], 2, 0, config.data)
    with pytest.raises(UserError, match="no two pictures share a caption"):
        objective.see(loader)


def test_a_run_of_it_is_planned(toy_file, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["plan", str(toy_file), *STABLE])
    assert not exit_.value.code
    assert "a step" in capsys.readouterr().out
