"""A NaN or an infinity never reaches weights, moments, average or disk."""

import json
import re
from dataclasses import replace

import pytest
import torch
from helpers import same

from fluxsmith.config.objective_section import OBJECTIVES
from fluxsmith.data.images import to_unit
from fluxsmith.errors import UserError
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.console import TrainingConsole
from fluxsmith.training.flow_matching import FlowMatching
from fluxsmith.training.interrupt import Interrupt
from fluxsmith.training.recorder import Recorder, read_metrics
from fluxsmith.training.run import build_trainer
from fluxsmith.training.saving import NotFiniteError, Saver, copied, first_not_finite

PLAN = ("train.log_every=1", "train.checkpoint_every=2", "train.keep_checkpoints=0")


def poisoned(toy, images, *overrides, value=float("inf")):
    """A trainer in whose data some images, by index, hold an infinity."""
    trainer = build_trainer(toy(*PLAN, *overrides), torch.device("cpu"))
    trainer.loader.images[0] = to_unit(trainer.loader.images[0])  # floats are taken as they are
    trainer.loader.images[0][images, 0, 3, 4] = value
    return trainer


def images_of(toy, step):
    """The indices that step `step`, counted from 0, is taken on."""
    loader = build_trainer(toy(*PLAN), torch.device("cpu")).loader
    loader.images[0] = torch.arange(len(loader.images[0])).view(-1, 1, 1, 1)  # each its own number
    return loader.batch(step).images.add(1).mul(127.5).round().int().flatten().tolist()


def run(trainer):
    """Trains to the end."""
    trainer.folder.mkdir(exist_ok=True)
    with (
        TrainingConsole(trainer.config.train.steps, 0) as console,
        Saver(trainer.folder, trainer.config.train, print) as saver,
    ):
        return trainer.run(Recorder(trainer.folder, 0), console, Interrupt(), saver)


def moving(trainer):
    """All that a step changes for good."""
    state = trainer.state_dict()
    moments = state["optimizer"]["state"]
    return copied({"model": state["model"], "ema": state["ema"], "optimizer": moments})


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("host_sync", [True, False], ids=["read", "masked"])
def test_a_bad_step_changes_nothing_and_the_next_goes_on(toy, value, host_sync):
    """Whether the verdict is read, as on a CPU, or masks the update on the device."""
    trainer = poisoned(toy, images_of(toy, 1)[:1], value=value)
    trainer.update.host_sync = host_sync
    trainer.train_step()
    before = moving(trainer)
    trainer.train_step()
    assert same(moving(trainer), before)
    trainer.train_step()
    assert not same(moving(trainer), before)
    assert trainer.step == 3


def test_the_masked_update_is_the_update(toy):
    """To the last bit in the weights, and to rounding in the average."""
    found = []
    for host_sync in (True, False):
        trainer = build_trainer(toy(), torch.device("cpu"))
        trainer.update.host_sync = host_sync
        for _ in range(4):
            trainer.train_step()
        found.append(moving(trainer))
    assert same(found[0]["model"], found[1]["model"])
    assert same(found[0]["optimizer"], found[1]["optimizer"])
    torch.testing.assert_close(found[0]["ema"], found[1]["ema"], rtol=1e-6, atol=1e-7)


def test_skipped_steps_are_counted_and_a_run_outlives_a_few(toy):
    trainer = poisoned(toy, images_of(toy, 1)[:1] + images_of(toy, 3)[:3])
    assert run(trainer) == trainer.folder / "diffusion-6.pt"
    text = (trainer.folder / "metrics.jsonl").read_text()
    records = read_metrics(trainer.folder / "metrics.jsonl")
    assert [r.get("skipped_steps", 0) for r in records] == [0, 1, 0, 1, 0, 0]
    assert ["loss" in r for r in records] == [True, False, True, False, True, True]
    assert all(json.loads(line, parse_constant=pytest.fail) for line in text.splitlines())
    for _, path in checkpoints.find(trainer.folder):
        assert first_not_finite(checkpoints.load(path)) is None


def test_a_record_over_several_steps_is_that_of_the_good_ones(toy):
    good = build_trainer(toy(*PLAN), torch.device("cpu"))
    bad = poisoned(toy, images_of(toy, 1)[:1])
    for trainer in (good, bad):
        trainer.train_step()
    expected = good.means.means()
    bad.train_step()
    found = bad.means.means()
    assert found == {"skipped_steps": 1, **expected}


def test_many_in_a_row_end_the_run_and_say_where(toy):
    trainer = poisoned(toy, slice(None), "train.max_bad_steps=3", "train.steps=100")
    trainer.loader.images[0][:, 0, 3, 4] = 0
    bad = {i for step in (4, 5, 6) for i in images_of(toy, step)[2:3]}
    trainer.loader.images[0][list(bad), 0, 3, 4] = float("nan")
    with pytest.raises(UserError) as caught:
        run(trainer)
    message = str(caught.value)
    last = trainer.folder / "diffusion-6.pt"
    assert re.search(r"step 7: the loss of 1 images at t = 0\.\d{4} is not finite", message)
    assert "3 such steps in a row (train.max_bad_steps)" in message
    assert message.endswith(f"the last good checkpoint is {last}")
    assert len(message.splitlines()) == 1
    assert first_not_finite(checkpoints.load(last)) is None


def test_the_count_in_a_row_survives_a_resume(toy):
    trainer = poisoned(toy, slice(None), "train.max_bad_steps=3")
    trainer.train_step()
    trainer.train_step()
    again = poisoned(toy, slice(None), "train.max_bad_steps=3")
    again.load_state_dict(trainer.state_dict(), "x.pt")
    assert not again.guard.exhausted(again.step, host_sync=True)
    again.train_step()
    assert again.guard.exhausted(again.step, host_sync=True)


def test_weights_that_are_not_finite_are_not_saved(toy):
    """However they came to be so."""
    trainer = build_trainer(toy(*PLAN), torch.device("cpu"))
    trainer.train_step()
    with torch.no_grad():
        trainer.ema.weights["network.img_in.weight"][0, 0] = float("nan")
    trainer.folder.mkdir()
    with Saver(trainer.folder, trainer.config.train, print) as saver:
        saver.save(trainer.state_dict())
        with pytest.raises(NotFiniteError, match=r"ema\.network\.img_in\.weight is not finite"):
            saver.finish()
    assert list(trainer.folder.iterdir()) == []


class Steep(FlowMatching):
    """The square root's slope at 0 is infinite: here it stands for any such operation."""

    def losses(self, inputs):
        losses = super().losses(inputs)
        zero = self.pipeline.network.img_in.weight.mul(0).sum()
        return replace(losses, total=losses.total + zero.sqrt())


def test_a_gradient_that_is_not_finite_though_the_loss_is(toy, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "steep", Steep)
    trainer = build_trainer(toy(*PLAN, "objective.kind=steep"), torch.device("cpu"))
    before = moving(trainer)
    trainer.train_step()
    assert same(moving(trainer), before)
    assert "the gradient of a batch at t = " in trainer.explain_bad_step()


def test_a_rate_under_which_weights_explode_in_a_step_is_refused(toy):
    with pytest.raises(UserError, match=r"train\.learning_rate=101: must be less"):
        toy("train.learning_rate=101")
