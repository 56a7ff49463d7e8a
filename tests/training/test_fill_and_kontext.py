"""Models that are given pictures: what their network sees, their training, what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import randomise, same
from made_pictures import as_folder, items

from fluxsmith import Pipeline
from fluxsmith.autoencoder.conditioning import ImageCondition
from fluxsmith.cli import main
from fluxsmith.data import build_loader
from fluxsmith.errors import UserError
from fluxsmith.evaluation.measurement import during_training
from fluxsmith.evaluation.samples import Reference, Samples, Settings
from fluxsmith.interop.open_pipeline import TextToImage, load_initial
from fluxsmith.randomness import generator
from fluxsmith.sampling.edit import Edit
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.flow_matching import FlowMatching
from fluxsmith.training.objective import objective_of
from fluxsmith.training.recorder import read_metrics
from fluxsmith.training.run import build_trainer, train

KINDS = ["fill", "kontext"]
PAIRS = ("data={source: colored-digits, edits: true, channels: 3, image_size: 12, resize: stretch}",
         "model.patch_size=4")  # fmt: skip


def settings(kind):
    more = PAIRS if kind == "kontext" else ()
    return (*more, f"model.conditioning={kind}", f"objective.kind={kind}")


@pytest.fixture
def config(toy):
    return lambda kind, *more: toy(*settings(kind), *more)


def test_a_fill_network_sees_the_kept_part_and_the_mask_in_every_token(toy):
    pipeline = randomise(Pipeline.build(toy("model.conditioning=fill"))).eval()
    params = pipeline.network.params
    assert (params.in_channels, params.out_channels) == (16 * 3, 16)
    image, mask = torch.rand(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    mask[..., 3:7, 3:7] = 1
    seen = pipeline.image_condition(image, mask).channels
    assert torch.equal(seen, torch.cat((image * (1 - mask), mask), dim=1))


def test_a_reference_is_more_tokens_at_its_own_positions(toy):
    """The same tokens at index 0, over the picture's own positions, would be another thing."""
    pipeline = randomise(Pipeline.build(toy("model.conditioning=kontext"))).eval()
    caught = []
    pipeline.network.register_forward_pre_hook(
        lambda _, __, given: caught.append(given), with_kwargs=True
    )
    x, image, t = torch.randn(2, 1, 16, 16), torch.rand(2, 1, 8, 24), torch.tensor(0.5)
    with torch.no_grad():
        cond = pipeline.encode_text(["3", "4"])
        v = pipeline.velocity(x, t, cond, image_cond=pipeline.image_condition(image))
    assert v.shape == x.shape
    [given] = caught
    assert given["img"].shape == (2, 16 + 2 * 6, 16)
    ids = given["img_ids"].tolist()
    assert ids[:16] == [[0, row, column] for row in range(4) for column in range(4)]
    assert ids[16:] == [[1, row, column] for row in range(2) for column in range(6)]


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_is_the_same_together_and_apart(config, kind):
    pipeline = randomise(Pipeline.build(config(kind))).eval()
    channels, side = pipeline.autoencoder.channels, pipeline.config.data.image_size
    x, image = torch.randn(2, 2, channels, side, side).unbind()
    mask = (torch.rand(2, 1, side, side) > 0.5).float()
    seen, cond = pipeline.image_condition(image, mask), pipeline.encode_text(["3", "make it red"])
    apart = Sampler(pipeline)
    apart.joint_tokens = 0, 0
    with torch.no_grad():
        one, two = (
            sampler.guided_velocity(cond, 3.0, seen)(x, torch.tensor(0.5))
            for sampler in (Sampler(pipeline), apart)
        )
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_drawn_from_another_does_not_depend_on_its_batch(config, kind):
    pipeline = randomise(Pipeline.build(config(kind))).eval()
    side, channels = pipeline.config.data.image_size, pipeline.config.data.channels
    images = torch.rand(3, channels, side, side) * 2 - 1
    masks = (torch.rand(3, 1, side, side) > 0.5).float() if kind == "fill" else None
    prompts = ["3", "make it red", "4"]
    together = Sampler(pipeline).generate(prompts, edit=Edit(images, mask=masks), batch_size=2)
    for i in range(3):
        edit = Edit(images[i], mask=None if masks is None else masks[i])
        alone = Sampler(pipeline).generate(prompts[i : i + 1], edit=edit, first_index=i)
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=0)
    other = Sampler(pipeline).generate(["4"], edit=replace(edit, image=-images[2]), first_index=2)
    assert not torch.allclose(alone, other)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_has_an_address_and_splits_with_the_batch(config, kind):
    made = config(kind)
    pipeline = Pipeline.build(made)
    objective = objective_of(made).build(made, pipeline)
    batch = build_loader(made.data, 8, 0).batch(0)
    one, two = (objective.draw(batch, generator("a", 0)) for _ in range(2))
    randomise(pipeline)
    whole = objective.losses(objective.prepare(one)).total
    parts = [objective.losses(objective.prepare(part)).total for part in two.split(4)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)


def test_masked_training_looks_at_the_picture_around_the_hole(config):
    """Its loss changes with what is kept, and the noise is that of plain training."""
    made = config("fill")
    pipeline = randomise(Pipeline.build(made))
    objective = objective_of(made).build(made, pipeline)
    batch = build_loader(made.data, 8, 0).batch(0)
    example = objective.draw(batch, generator("a", 0))
    plain = FlowMatching.draw(objective, batch, generator("a", 0))
    assert torch.equal(example.noisy.eps, plain.eps) and torch.equal(example.noisy.t, plain.t)
    inputs = objective.prepare(example)
    kept, mask = inputs.image_cond.channels.chunk(2, dim=1)
    assert torch.equal(kept, batch.images * (1 - mask))
    assert 0 < mask.mean() < 1
    other = replace(inputs, image_cond=ImageCondition(torch.cat((-kept, mask), dim=1)))
    assert not torch.allclose(objective.losses(other).total, objective.losses(inputs).total)


def test_training_on_edits_shows_the_picture_before(config):
    made = config("kontext")
    objective = objective_of(made).build(made, Pipeline.build(made))
    batch = build_loader(made.data, 8, 0).batch(0)
    inputs = objective.prepare(objective.draw(batch, generator("a", 0)))
    assert torch.equal(inputs.image_cond.reference, batch.references)
    assert torch.equal(inputs.x0, batch.images)
    assert not torch.equal(batch.images, batch.references)


def test_a_run_without_test_images_draws_no_grid_and_goes_on(config, tmp_path, capsys):
    made = config("fill", f"data={{source: folder, path: {tmp_path / 'few'}, test_share: 0}}",
                  "train={steps: 2, batch_size: 2, sample_every: 1}")  # fmt: skip
    as_folder(tmp_path / "few", items(4, size=16))
    assert train(made) == 0
    assert "there are none; keep some" in capsys.readouterr().out
    assert (tmp_path / "run" / "diffusion-2.pt").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_draws_measures_and_resumes_to_the_bit(config, tmp_path, kind):
    made = config(
        kind,
        "train={steps: 6, batch_size: 8, checkpoint_every: 3, keep_checkpoints: 0}",
        "train.sample_every=3",
        "evaluate={every: 3, validation_images: 8, num_samples: 4}",
        "evaluate.metrics=[validation_loss,edit_error]",
    )
    assert train(made, evaluate=lambda: during_training(made)) == 0
    folder = tmp_path / "run"
    records = read_metrics(folder / "metrics.jsonl")
    assert {"validation_loss/ema", "edit_error/ema"} <= records[-1].keys()
    assert (folder / "sample-3.png").is_file()
    whole = checkpoints.load(folder / "diffusion-6.pt")
    (folder / "diffusion-6.pt").unlink()
    assert train(made, resume="auto", evaluate=lambda: during_training(made)) == 0
    again = checkpoints.load(folder / "diffusion-6.pt")
    for part in ("model", "ema", "optimizer"):
        assert same(again[part], whole[part]), part


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_measures_what_it_can_and_says_what_it_leaves_out(config, tmp_path, capsys, kind):
    assert train(config(kind, "evaluate.every=0")) == 0
    found = tmp_path / "found.json"
    metrics = "validation_loss,edit_error,straightness,likelihood"
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", str(tmp_path / "run"), "--num-samples", "6", "--steps", "2",
              "--metrics", metrics, "--json", str(found)])  # fmt: skip
    assert not exit_.value.code
    results = json.loads(found.read_text())["results"]
    assert results.keys() == {"validation_loss", "edit_error"}
    assert results["edit_error"]["given"] > 0
    assert json.loads(found.read_text())["settings"]["num_samples"] == 6
    printed = capsys.readouterr().out
    for name in ("straightness", "likelihood"):
        assert f"left out, {name}: it gives no pictures" in printed
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", str(tmp_path / "run"), "--metrics", "straightness"])
    assert exit_.value.code == 2


@pytest.mark.parametrize("kind", KINDS)
def test_each_test_picture_is_drawn_once_at_most(config, kind):
    made = config(kind)
    reference = Reference(made)
    samples = Samples(Sampler(Pipeline.build(made)), reference, Settings(num_samples=10**6))
    assert samples.rows == list(range(len(reference.test)))
    assert samples.settings.num_samples == len(samples) == len(reference.test)


def test_a_text_model_becomes_a_fill_model_that_is_blind_at_first(toy, config, tmp_path):
    assert train(toy("evaluate.every=0", "train.ema_decay=0")) == 0
    text = Pipeline.from_checkpoint(tmp_path / "run" / "diffusion-6.pt", "cpu")
    fill = Pipeline.build(config("fill"))
    load_initial(fill, str(tmp_path / "run"))
    assert_blind(fill, text)


def assert_blind(fill, text):
    """A fill model draws what this one of text alone draws."""
    x, t, cond = torch.randn(2, 1, 16, 16), torch.tensor(0.5), text.encode_text(["3", "4"])
    seen = fill.image_condition(torch.rand(2, 1, 16, 16), torch.ones(2, 1, 16, 16))
    with torch.no_grad():
        v = fill.eval().velocity(x, t, cond, image_cond=seen)
        torch.testing.assert_close(v, text.velocity(x, t, cond))


def test_a_lora_makes_a_fill_model_of_a_text_model(toy, config, tmp_path, capsys):
    """It begins blind, and its checkpoint draws with the base that was widened."""
    assert train(toy("evaluate.every=0", "train.ema_decay=0")) == 0
    base = (tmp_path / "run").rename(tmp_path / "base")
    own = f"train.init_from={base}", "train.adapter={kind: lora, rank: 2, targets: [all]}"
    made = config("fill", *own, "evaluate.every=0", "train.learning_rate=0.1")
    blind = config("fill", *own, "train.adapter.targets=[attention]")
    with pytest.raises(UserError, match="name embedders"):
        build_trainer(blind, torch.device("cpu"))
    fill = build_trainer(made, torch.device("cpu")).pipeline
    text = Pipeline.from_checkpoint(base / "diffusion-6.pt", "cpu")
    assert_blind(fill, text)
    assert train(made) == 0
    drawn = TextToImage.from_checkpoint(tmp_path / "run" / "diffusion-6.pt", "cpu")
    with pytest.raises(AssertionError):
        assert_blind(drawn, text)
    with pytest.raises(SystemExit) as exit_:
        main(["lora", "merge", str(tmp_path / "run"), str(tmp_path / "m.safetensors")])
    assert exit_.value.code == 2
    assert "export" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_model_goes_by_the_picture_that_it_is_given(config, kind, tmp_path):
    """With another one's surroundings, or another one's reference, it is wrong."""
    made = config(kind, "train={steps: 300, batch_size: 32, ema_decay: 0.9}", "evaluate.every=0")
    assert train(made) == 0
    pipeline = Pipeline.from_checkpoint(tmp_path / "run" / "diffusion-300.pt", "cpu")
    objective = objective_of(made).build(made, pipeline)
    batch = build_loader(made.data, 64, seed=1).batch(0)
    inputs = objective.prepare(objective.draw(batch, generator("held out")))
    rolled = [
        None if part is None else part.roll(1, 0) for part in vars(inputs.image_cond).values()
    ]
    other = replace(inputs, image_cond=ImageCondition(*rolled))
    with torch.no_grad():
        own, wrong = (float(objective.losses(each).total.mean()) for each in (inputs, other))
    assert wrong > 1.5 * own


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model.conditioning=fill"], r"model\.conditioning=fill: objective\.kind=flow_matching"),
        (["objective.kind=kontext"], r"model\.conditioning=text: objective\.kind=kontext"),
        ([*settings("kontext"), "data={source: digits, image_size: 16, resize: stretch}"],
         r"no reference pictures.*data\.reference_key"),
    ],
)  # fmt: skip
def test_a_model_and_what_it_is_trained_for_must_fit(toy, overrides, named):
    with pytest.raises(UserError, match=named):
        train(toy(*overrides, "evaluate.every=0", "train.diagnose=false"))


def test_pairs_are_for_models_that_look_at_them(toy):
    with pytest.raises(UserError, match=r"data\.edits=True.*model\.conditioning=kontext"):
        toy(*PAIRS)


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        ("fill", {}, "conditioning=fill.*--init-image and --mask"),
        ("fill", {"edit": Edit(torch.zeros(1, 16, 16))}, "conditioning=fill.*--mask"),
        ("kontext", {}, "conditioning=kontext.*--init-image"),
        ("kontext", {"edit": Edit(torch.zeros(3, 12, 12), mask=torch.ones(1, 12, 12))}, "--mask"),
        ("kontext", {"edit": Edit(torch.zeros(3, 12, 12), strength=0.5)}, "--strength"),
        ("kontext", {"edit": Edit(torch.zeros(2, 3, 12, 12))}, "2 images for 1 pictures"),
    ],
)
def test_what_such_a_model_can_not_draw_is_one_line(config, kind, settings, named):
    with pytest.raises(UserError, match=named):
        Sampler(Pipeline.build(config(kind))).generate(["3"], **settings)
