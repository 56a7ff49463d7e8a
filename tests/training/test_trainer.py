"""The loop: gradients, records, resuming, retention. Every comparison of weights is to the bit."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from helpers import randomise, same, without_times

from fluxsmith import Pipeline
from fluxsmith.config.objective_section import OBJECTIVES
from fluxsmith.errors import UserError
from fluxsmith.flow.path import interpolate
from fluxsmith.flow.timesteps import Uniform
from fluxsmith.randomness import generator
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.averages import QUARTILES, RunningMeans
from fluxsmith.training.flow_matching import FlowMatching
from fluxsmith.training.objective import Losses
from fluxsmith.training.recorder import read_metrics
from fluxsmith.training.run import build_trainer, train
from fluxsmith.training.saving import copied, on_host


def trained(toy, *overrides, **options):
    """The final checkpoint and the records of a run."""
    config = toy(*overrides)
    assert train(config, **options) == 0
    folder = Path(config.output_dir)
    return checkpoints.load(checkpoints.newest(folder)), read_metrics(folder / "metrics.jsonl")


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_gradients_go_with_their_step(toy, kernels):
    """With our C++ and without: a step that is remembered would fill the memory."""
    trainer = build_trainer(toy(f"train.kernels={kernels}"), torch.device("cpu"))
    seen = []
    for p in trainer.pipeline.parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.append(weakref.ref(p.grad)))
    for _ in range(3):
        trainer.train_step()
    assert len(seen) == 3 * len(list(trainer.pipeline.parameters()))
    assert not any(gradient() is not None for gradient in seen)


def test_a_checkpoint_has_the_same_bytes_however_it_is_written(toy, tmp_path):
    """From a copy, while training goes on, or from the state itself."""
    trainer = build_trainer(toy(), torch.device("cpu"))
    trainer.train_step()
    files = {"copy": copied, "itself": on_host}
    for name, taken in files.items():
        checkpoints.save(tmp_path / name, taken(trainer.state_dict()))
    copy, itself = ((tmp_path / name).read_bytes() for name in files)
    assert copy == itself


class InOrder(FlowMatching):
    """Notes in which order its parts are called."""

    called: list[str]

    def prepare(self, *given):
        self.called.append("prepare")
        return super().prepare(*given)

    def losses(self, inputs):
        self.called.append("losses")
        return super().losses(inputs)


def test_a_piece_is_prepared_when_the_one_before_is_done(toy, monkeypatch):
    """Or latents and text of all of them would lie in memory at once."""
    monkeypatch.setitem(OBJECTIVES, "in-order", InOrder)
    config = toy("train.accumulate=4", "objective.kind=in-order")
    trainer = build_trainer(config, torch.device("cpu"))
    trainer.objective.called = []
    trainer.train_step()
    assert trainer.objective.called == ["prepare", "losses"] * 4


def test_a_batch_cut_into_pieces_has_the_gradients_of_the_whole(toy):
    gradients = []
    for pieces in (1, 4):
        config = toy(f"train.accumulate={pieces}", "train.grad_clip=0")
        trainer = build_trainer(config, torch.device("cpu"))
        randomise(trainer.pipeline)
        trainer.optimiser.step = lambda: None
        trainer.optimiser.zero_grad = lambda **_: None
        trainer.train_step()
        gradients.append({n: p.grad for n, p in trainer.pipeline.named_parameters()})
    whole, cut = gradients
    for name in whole:
        scale = whole[name].abs().max()
        torch.testing.assert_close(cut[name], whole[name], atol=float(2e-5 * scale), rtol=1e-4)


def test_the_objective_is_the_error_of_the_velocity_at_x_t(toy, pipeline):
    trainer = build_trainer(toy(), torch.device("cpu"))
    objective = FlowMatching(pipeline, Uniform(), stratified=False)
    example = objective.draw(trainer.loader.batch(0), generator("x"))
    losses = objective.losses(objective.prepare(example))
    x0, eps = example.batch.images, example.eps
    for i in range(len(x0)):
        x_t = interpolate(x0[i : i + 1], eps[i : i + 1], example.t[i])
        v = pipeline.velocity(x_t, example.t[i], pipeline.encode_text([example.batch.captions[i]]))
        expected = (v - (eps[i : i + 1] - x0[i : i + 1])).square().mean()
        torch.testing.assert_close(losses.total[i], expected, atol=1e-4, rtol=1e-4)


def test_clipping_bounds_the_gradient_once_a_step(toy):
    trainer = build_trainer(toy("train.grad_clip=0.001", "train.accumulate=2"), torch.device("cpu"))
    trainer.train_step()
    # AdamW's first moment of the one step that it has seen is (1 - beta1) times the gradient.
    moments = [state["exp_avg"].norm() for state in trainer.optimiser.state.values()]
    beta1, _ = trainer.config.train.betas
    assert torch.stack(moments).norm().item() == pytest.approx((1 - beta1) * 0.001, rel=1e-3)


def test_a_gradient_that_is_short_enough_is_left_alone(toy):
    trainers = [
        build_trainer(toy(f"train.grad_clip={most}"), torch.device("cpu")) for most in (0, 1e6)
    ]
    for trainer in trainers:
        trainer.train_step()
    weights = zip(*(trainer.pipeline.parameters() for trainer in trainers), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_training_learns(toy):
    """The loss falls well below that of predicting 0, which is E|eps - x0|^2, here about 1.6."""
    _, records = trained(toy, "train.steps=60", "train.learning_rate=0.003", "train.batch_size=32")
    assert records[0]["loss"] > 1.2
    assert records[-1]["loss"] < 0.6


def test_two_runs_of_one_config_are_equal_to_the_bit_and_another_seed_is_another_run(toy, tmp_path):
    one, records = trained(toy)
    two, again = trained(toy, f"output_dir={tmp_path / 'two'}")
    for key in ("model", "ema", "optimizer", "window", "data"):
        assert same(one[key], two[key]), key
    assert [*map(without_times, records)] == [*map(without_times, again)]
    assert all(record["data_wait"] >= 0 for record in records)  # seconds a step
    other, _ = trained(toy, "seed=1", f"output_dir={tmp_path / 'three'}")
    assert not same(one["model"], other["model"])


def test_sampling_does_not_disturb_training(toy, tmp_path):
    quiet, _ = trained(toy)
    drawing, _ = trained(toy, "train.sample_every=1", f"output_dir={tmp_path / 'two'}")
    assert same(quiet["model"], drawing["model"])
    assert same(quiet["ema"], drawing["ema"])


@pytest.mark.parametrize("name", [".", "diffusion-4.pt"])
def test_resuming_from_a_path_goes_on_from_there(toy, tmp_path, name):
    plan = ("train.checkpoint_every=2", "train.keep_checkpoints=0")
    whole, _ = trained(toy, *plan)
    start = tmp_path / "run"
    (start / "diffusion-6.pt").unlink()
    resumed, _ = trained(toy, f"output_dir={tmp_path / 'on'}", resume=str(start / name))
    assert same(whole["model"], resumed["model"])


def test_a_finished_run_has_nothing_to_do(toy, capsys):
    trained(toy)
    folder = Path(toy().output_dir)
    before = checkpoints.newest(folder).read_bytes()
    (folder / "loss.png").unlink()  # as where it was killed just before it drew that
    trained(toy, resume="auto")
    assert "nothing to do" in capsys.readouterr().out
    assert checkpoints.newest(folder).read_bytes() == before
    assert (folder / "loss.png").is_file()


def test_a_run_is_not_written_over(toy):
    trained(toy)
    with pytest.raises(UserError, match="already holds a run, at step 6; add --resume auto"):
        train(toy())
    with pytest.raises(UserError, match="contradict"):
        train(toy(), resume="auto", overwrite=True)
    state, records = trained(toy, "train.steps=4", overwrite=True)
    assert state["step"] == 4
    assert [r["step"] for r in records] == [2, 4]


def test_settings_of_the_optimiser_changed_on_resuming_hold(toy):
    trained(toy)
    state, _ = trained(
        toy, "train.steps=8", "train.weight_decay=0.5", "train.betas=[0.5, 0.6]", resume="auto"
    )
    groups = state["optimizer"]["param_groups"]
    assert [g["weight_decay"] for g in groups] == [0.5, 0.0]
    assert all(tuple(g["betas"]) == (0.5, 0.6) for g in groups)


def test_resuming_below_later_checkpoints_is_refused(toy, tmp_path):
    trained(toy, "train.checkpoint_every=2", "train.keep_checkpoints=0")
    with pytest.raises(UserError, match=r"checkpoint of step 6, later than .*diffusion-2\.pt"):
        train(toy(), resume=str(tmp_path / "run" / "diffusion-2.pt"))


def test_other_data_under_the_same_name_is_refused(toy):
    trained(toy)
    trainer = build_trainer(toy(), torch.device("cpu"))
    state = checkpoints.load(checkpoints.newest(Path(toy().output_dir)))
    state["data"] = {**state["data"], "images": 7}
    with pytest.raises(UserError, match="was trained on 7 images, and there are 1,415 now"):
        trainer.load_state_dict(state, "x.pt")


def test_a_checkpoint_describes_itself(toy):
    state, _ = trained(toy)
    assert state["format"] == "fluxsmith/1"
    assert state["images_seen"] == 48
    assert state["data"].pop("digest")
    assert state["data"] == {"epoch": 0, "offset": 48, "images": 1415}
    assert state["config"] == toy().model_dump()
    assert state["metadata"]["captions"][:3] == ["0", "zero", "1"]
    assert state["model"].keys() == state["ema"].keys()
    json.dumps({k: state[k] for k in ("config", "data", "metadata")})  # plain data


def test_the_pipeline_of_a_checkpoint_has_its_weights(toy, tmp_path):
    state, _ = trained(toy)
    path = checkpoints.newest(tmp_path / "run")
    for weights in ("ema", "model"):
        pipeline = Pipeline.from_checkpoint(path, device="cpu", weights=weights)
        assert same(dict(pipeline.state_dict()), dict(state[weights]))
    assert not same(state["ema"], state["model"])
    with pytest.raises(UserError, match="must be ema or model"):
        Pipeline.from_checkpoint(path, weights="raw")


def test_a_run_leaves_what_the_contract_promises(toy, tmp_path):
    trained(toy, "train.sample_every=3")
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {
        "config.yaml", "metrics.jsonl", "tensorboard", "loss.png", "diffusion-6.pt",
        "sample-3.png", "sample-3.txt", "sample-6.png", "sample-6.txt",
    }  # fmt: skip
    assert (tmp_path / "run" / "sample-3.txt").read_text().split() == ["0", "two", "5", "seven"]


def test_a_record_is_the_mean_over_its_steps_by_quartile():
    window = RunningMeans("cpu")
    t = torch.tensor([0.1, 0.3, 0.3, 0.99, 1.0])
    good = torch.tensor(True)
    window.add(Losses(torch.tensor([1.0, 2.0, 4.0, 5.0, 8.0]), t), torch.tensor(1.0), good)
    window.add(Losses(torch.tensor([3.0]), torch.tensor([0.0])), torch.tensor(2.0), good)
    record = window.means()
    assert QUARTILES == 4
    assert record == pytest.approx(
        {"loss": 23 / 6, "grad_norm": 1.5, "loss_q1": 2.0, "loss_q2": 3.0, "loss_q4": 6.5}
    )


def test_grids_are_drawn_of_the_prompts_that_are_given(toy, tmp_path):
    trained(toy, "train.sample_every=6", "sample.prompts=[one, nine of them]")
    lines = (tmp_path / "run" / "sample-6.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["one", "nine of them"]
    long = "x " * 99
    with pytest.raises(UserError, match=r"sample\.prompts: prompt 1 .* makes 99 tokens"):
        train(toy(f"sample.prompts=[{long}]"), overwrite=True)
