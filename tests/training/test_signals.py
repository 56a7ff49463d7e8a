"""What is said of a run: of each planted fault its name, of a healthy run nothing, once."""

import runpy
from itertools import permutations
from pathlib import Path

import pytest
import torch
from helpers import same, without_times
from hypothesis import given
from hypothesis import strategies as st

from fluxsmith.data.captions import exchanged
from fluxsmith.training.alignment import Alignment, hsic, words_in_common
from fluxsmith.training.curves import plot_signals, thin_out
from fluxsmith.training.diagnosis import FAULTS, Diagnosis
from fluxsmith.training.movement import kind_of
from fluxsmith.training.recorder import Recorder, read_metrics
from fluxsmith.training.run import build_trainer
from fluxsmith.training.saving import Saver, copied
from fluxsmith.training.signals import looks

PLANTED = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "planted_faults.py"))
CPU = torch.device("cpu")
LOOKED_AT = (
    "train.steps=200", "train.batch_size=32", "train.warmup_steps=10", "train.learning_rate=2e-3",
)  # fmt: skip
QUICK = ("learning rate /30", "captions shuffled", "labels wrong for a third", "no layer norm")


def tell(config, planted):
    rate = config.train.learning_rate * planted.rate
    train = config.train.model_copy(update={"learning_rate": rate})
    config = config.model_copy(update={"train": train})
    return PLANTED["tell"]("toy", config, planted, 0.1)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in PLANTED["FAULTS"]
    ],
)
def test_a_planted_fault_is_named_within_the_first_tenth(toy, name):
    planted = PLANTED["FAULTS"][name]
    told = tell(toy(*LOOKED_AT, *planted.overrides), planted)
    assert told.said == [planted.said]
    assert len(told.lines) == 1
    assert told.lines[0].startswith("step 20: ")


def test_nothing_is_said_of_a_healthy_run(toy):
    assert tell(toy(*LOOKED_AT), PLANTED["Planted"]("")).lines == []


LATER = {  # faults that show later than in the first tenth, by a record that has them
    "text ignored": {"learned": 1.3, "conditioning_gap": 0.0, "conditioning_gap_stderr": 0.0,
                     "loss_held_out": 1.0, "loss": 1.0},
    "by heart": {"loss_held_out": 1.6, "loss": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("name", LATER)
def test_what_shows_later_is_named_by_its_figures(toy, name):
    train = toy("train.steps=100").train
    record = {"average_step": 1.0, "learning_rate": train.learning_rate} | LATER[name]
    diagnosis = Diagnosis(train)
    early = diagnosis.lines(40, record)
    assert len(early) == (name == "by heart")
    assert len(early + diagnosis.lines(50, record)) == 1
    assert diagnosis.said == [name]


@pytest.mark.parametrize(
    ("update", "learned", "losses", "said"),
    [
        # mnist/small, 1,050 steps: as it is, at 30 times its rate and at a 30th (docs/signals.md)
        (0.0051, 1.21, [0.5, 0.25], []),
        (0.0111, 1.13, [0.34, 397.0, 0.29], ["rate too high"]),
        (0.00022, 1.11, [0.9, 0.31], ["rate too low"]),
        # digits/colored at 3 times its rate, and a model that is trained further at a small one
        (0.0126, 3.47, [0.1, 0.124], []),
        (0.00022, 1.3, [0.2, 0.2], []),
        # digits/tiny at a 30th of its rate, after 78 steps, and at three tenths
        (0.0011, -0.5, [2.0, 1.5], ["rate too low"]),
        (0.0026, 0.78, [0.5, 0.4], []),
    ],
)
def test_a_learning_rate_is_told_by_what_was_measured(toy, update, learned, losses, said):
    train = toy("train.steps=100").train
    diagnosis = Diagnosis(train)
    for loss in losses:
        diagnosis.lines(10, {"loss": loss})
    record = {"average_step": 1.0, "learning_rate": train.learning_rate, "loss": losses[-1]}
    diagnosis.lines(10, record | {"update/blocks": update, "learned": learned})
    assert diagnosis.said == said


def test_every_fault_has_a_line_and_is_planted():
    planted = {each.said for each in PLANTED["FAULTS"].values()}
    assert planted | LATER.keys() == {each.name for each in FAULTS}


def test_healthy_rates_are_near_those_of_the_configs_that_ship():
    read, runs = PLANTED["read"], PLANTED["healthy"]()
    assert len({read(run).model_dump_json() for run in runs}) == 30
    rates = {read(run).train.learning_rate / read(run[:1]).train.learning_rate for run in runs}
    assert {round(rate, 6) for rate in rates} == {0.15, 0.3, 1, 1.5, 3}


def test_a_run_is_the_same_to_the_bit_looked_at_or_not(toy, tmp_path):
    states = []
    for diagnose in ("true", "false"):
        config = toy("train.steps=100", f"train.diagnose={diagnose}")
        trainer = build_trainer(config, CPU)
        run_to(trainer, 20, tmp_path / diagnose)
        states.append(copied(trainer.state_dict()))
    on, off = states
    for key in ("model", "ema", "optimizer", "data"):
        assert same(on[key], off[key])
    records = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("true", "false")]
    assert [[r["loss"] for r in each if r["step"] in (10, 20)] for each in records].count(
        [r["loss"] for r in records[1] if r["step"] in (10, 20)]
    ) == 2


def run_to(trainer, last, folder):
    folder.mkdir(exist_ok=True)
    trainer.folder = folder

    class Then(PLANTED["Interrupt"]):
        @property
        def number(self):
            return 15 if trainer.step >= last else 0

    console = PLANTED["Lines"]()
    with Saver(folder, trainer.config.train, console.say) as saver:
        trainer.run(Recorder(folder, trainer.step, console.say), console, Then(), saver)
    return [line for line in console.lines if line.startswith("step ") and ": " in line]


def test_a_resumed_run_sees_and_says_what_the_run_would_have_and_nothing_twice(toy, tmp_path):
    config = toy("train.steps=100", "train.learning_rate=2e-3", "data.caption_dropout=1")
    whole = build_trainer(config, CPU)
    said = run_to(whole, 20, tmp_path / "whole")
    assert [line.partition(",")[0] for line in said] == ["step 10: every caption is empty"]
    for stop in (7, 15):
        first = build_trainer(config, CPU)
        folder = tmp_path / f"stopped at {stop}"
        before = run_to(first, stop, folder)
        then = build_trainer(config, CPU)
        then.load_state_dict(copied(first.state_dict()), "first")
        after = run_to(then, 20, folder)
        assert before + after == said
        assert same(copied(then.state_dict()["window"]), copied(whole.state_dict()["window"]))
        records = [read_metrics(path / "metrics.jsonl") for path in (tmp_path / "whole", folder)]
        for one, other in zip(*records, strict=True):
            assert without_times(one) == without_times(other)


def test_a_look_leaves_its_figures_in_the_records_and_a_picture(toy, tmp_path):
    run_to(build_trainer(toy(*LOOKED_AT), CPU), 20, tmp_path)
    metrics, picture = tmp_path / "metrics.jsonl", tmp_path / "signals.png"
    seen = [record for record in read_metrics(metrics) if "average_step" in record]
    assert [record["step"] for record in seen] == sorted(looks(200))[:2] == [10, 20]
    figures = {
        "loss_held_out", "conditioning_gap", "conditioning_gap_stderr", "norm_error", "learned",
        "relative_loss_q1", "update/dual", "update/text", "gradient/modulation", "clipped_steps",
        "caption_alignment", "captions_empty",
    }  # fmt: skip
    assert all(figures <= record.keys() for record in seen)
    assert plot_signals(metrics, picture, "toy")
    assert picture.read_bytes().startswith(b"\x89PNG")
    metrics.write_text('{"step": 1, "loss": 1.0}\n')
    assert not plot_signals(metrics, picture, "a run that was not looked at")


@pytest.mark.slow
def test_a_run_of_an_adapter_is_looked_at(toy, tmp_path):
    run_to(build_trainer(toy("train.steps=2"), CPU), 2, tmp_path / "base")
    adapter = f"train.init_from={tmp_path / 'base'}", "train.adapter={kind: lora, rank: 2}"
    run_to(build_trainer(toy("train.steps=100", *adapter), CPU), 20, tmp_path / "lora")
    seen = [r for r in read_metrics(tmp_path / "lora" / "metrics.jsonl") if "average_step" in r]
    assert [record["step"] for record in seen] == sorted(looks(100))[:3] == [5, 10, 20]
    updates = [{k: v for k, v in r.items() if k.startswith("update/") and v} for r in seen]
    assert all(found.keys() == {"update/adapter"} for found in updates)


@pytest.mark.parametrize("highest", [0.3, 2.0, 90.0, 1e5])
def test_labels_of_ticks_do_not_lie_over_each_other(highest):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0.1, highest])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    thin_out(figure)
    figure.draw_without_rendering()
    labels = [*axes.get_yticklabels(), *axes.get_yticklabels(minor=True)]
    boxes = [label.get_window_extent() for label in labels if label.get_visible()]
    assert len(boxes) > 1
    assert not any(a.overlaps(b) for a, b in permutations(boxes, 2))


def test_a_short_run_is_not_looked_at():
    assert looks(99) == frozenset()
    assert sorted(looks(100)) == [5, *range(10, 101, 10)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("network.double_blocks.0.img_attn.qkv.weight", "dual"),
        ("network.double_blocks.0.img_mod.lin.bias", "modulation"),
        ("network.single_blocks.3.linear1.weight", "single"),
        ("network.single_blocks.3.modulation.lin.weight", "modulation"),
        ("network.final_layer.adaLN_modulation.1.weight", "modulation"),
        ("network.final_layer.linear.weight", "final"),
        ("network.time_in.in_layer.weight", "embedders"),
        ("text.bytes_in.weight", "text"),
    ],
)
def test_a_parameter_has_a_kind(name, kind):
    assert kind_of(name) == kind


def test_the_independence_criterion_is_its_u_statistic():
    """Song et al. 2012, eq. 3, summed over all quadruples."""
    draw = torch.Generator().manual_seed(0)
    a, b = (x + x.T for x in torch.randn(2, 6, 6, generator=draw))
    terms = [
        a[i, j] * (b[i, j] + b[q, r] - 2 * b[i, q]) for i, j, q, r in permutations(range(6), 4)
    ]
    torch.testing.assert_close(hsic(a, b), torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


def test_words_in_common_are_a_cosine():
    found = words_in_common(["a red seven", "a red six", "two", "two two"])
    expected = [[1, 2 / 3, 0, 0], [2 / 3, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_alignment_tells_captions_that_fit_from_those_of_other_pictures():
    draw = torch.Generator().manual_seed(0)
    fitting, others = Alignment("cpu"), Alignment("cpu")
    for _ in range(20):
        label = torch.randint(4, (32,), generator=draw)
        images = torch.eye(4)[label].view(32, 1, 2, 2) + torch.randn(32, 1, 2, 2, generator=draw)
        captions = [str(int(one)) for one in label]
        fitting.add(images, captions)
        others.add(images, captions[16:] + captions[:16])
    value, error, _ = fitting.figures()
    assert value > 5 * error > 0
    value, error, _ = others.figures()
    assert abs(value) < 3 * error


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=30))
def test_exchanged_captions_differ_as_far_as_they_can(captions):
    found = exchanged(captions)
    assert sorted(found) == sorted(captions)
    most = max(captions.count(each) for each in captions)
    same_as_before = sum(a == b for a, b in zip(captions, found, strict=True))
    assert same_as_before == max(0, 2 * most - len(captions))
