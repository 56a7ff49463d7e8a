"""From runs to study.json and the page: nothing is left out, and what failed is said."""

import json

import pytest
from html_page import Page
from study_makers import declare, planned, simulate

from fluxsmith.studies.answer import answer
from fluxsmith.studies.execution import outcome
from fluxsmith.studies.measuring import training_seconds
from fluxsmith.studies.planning import Run
from fluxsmith.studies.study_markdown import write_markdown
from fluxsmith.studies.study_page import write_study_page

GAIN = {"slow": 0.0, "fast": 0.1}
GRIDS = {"g1": {"guidance": 1}, "g2": {"guidance": 2}}


def results(value):
    return {
        "prompt_accuracy": {"accuracy": value},
        "feature_distance": {"frechet": {"value": 100 * (1 - value)}},
    }


def value(run):
    noise = (7 * run.seed % 5 - 2.5) if run.arm == "slow" else 0
    return 0.5 + GAIN[run.arm] + 0.02 * run.seed + 0.001 * noise


@pytest.fixture
def made(tmp_path, monkeypatch):
    """made(**changes): the plan of a study whose runs are made up."""
    monkeypatch.chdir(tmp_path)

    def made(**changes):
        usual = {"seeds": 4, "drawings": GRIDS, "primary": "g2.prompt_accuracy",
                 "figures": ["best.frechet"]}  # fmt: skip
        plan = planned(declare(tmp_path, **usual | changes), tmp_path / "output/studies/study")
        simulate(plan, value, results)
        return plan

    return made


def test_the_answer_is_plain_data_with_every_run(made):
    plan = made()
    found = json.loads(json.dumps(answer(plan, "fluxsmith study x", {})))
    assert [(run["arm"], run["seed"]) for run in found["runs"]] == [tuple(run) for run in plan.runs]
    first = found["runs"][0]
    assert first["figures"] == {
        "g2.prompt_accuracy": value(Run("slow", 0)),
        "best.frechet": pytest.approx(100 * (1 - value(Run("slow", 0)))),
    }
    assert found["verdicts"]["fast"].startswith("better by 10.")
    assert found["arms"]["fast"]["states"] == {"done": 4}
    assert found["arms"]["fast"]["seconds"]["value"] == 11.5
    assert found["measured"]["g1"]["prompt_accuracy"]["slow"]["seeds"] == 4
    assert [step for step, *_ in found["curves"]["loss"]["slow"]] == [2, 4, 8]
    assert found["notes"] == []


def test_arms_take_turns_from_seed_to_seed(made):
    order = [str(run) for run in made(seeds=3).runs]
    assert order == ["slow-0", "fast-0", "fast-1", "slow-1", "slow-2", "fast-2"]


def test_failed_diverged_and_missing_runs_are_counted_and_said(made):
    plan = made()
    ends = {0: "step 9: the loss is not finite (train.max_bad_steps)", 1: "out of memory"}
    for seed in (0, 1, 2):
        run = Run("fast", seed)
        (plan.run_folder(run) / "evaluation.json").unlink()
        if seed in ends:
            failure = {"exit_code": 2, "last_line": ends[seed]}
            plan.beside(run, "failed.json").write_text(json.dumps(failure), encoding="utf-8")
    states = [outcome(plan, Run("fast", seed)).state for seed in range(4)]
    assert states == ["diverged", "failed", "missing", "done"]
    found = answer(plan, "", {})
    assert found["verdicts"]["fast"].startswith("no answer: fewer than two seeds")
    said = " ".join(found["notes"])
    assert "fast: 1 of 4 runs diverged, of seed 0" in said
    assert "fast: 1 of 4 runs failed, of seed 1" in said
    assert "fast: 1 of 4 runs were not made, of seed 2" in said
    write_study_page(plan, found, plan.folder / "index.html")
    page = Page(plan.folder / "index.html")
    assert "failed" in page.headings
    for line in ends.values():
        assert line in page.text


def test_a_drawing_that_is_changed_is_measured_again_and_a_damaged_result_too(made, tmp_path):
    run = Run("slow", 0)
    assert outcome(made(), run).state == "done"
    folder = tmp_path / "output/studies/study"
    figures = {"primary": "g2.prompt_accuracy", "figures": ["g1.frechet"]}
    for drawings, state in (GRIDS, "done"), ({"g1": {}, "g2": {"guidance": 3}}, "missing"):
        path = declare(tmp_path, seeds=4, drawings=drawings, **figures)
        assert outcome(planned(path, folder), run).state == state
    plan = made()
    result = plan.run_folder(run) / "evaluation.json"
    result.write_text(result.read_text(encoding="utf-8")[:40], encoding="utf-8")
    assert outcome(plan, run).state == "missing"


def test_seeds_added_after_an_answer_are_said(made):
    first = answer(made(seeds=3), "", {})
    assert answer(made(seeds=3), "", first)["notes"] == []
    later = answer(made(seeds=4), "", first)
    assert "changed after an answer had been seen (3, then 4)" in later["notes"][0]
    assert "changed after" in answer(made(seeds=4), "", later)["notes"][0]


def test_training_seconds_leave_out_pauses_and_count_every_step_once():
    records = [
        {"step": 10, "loss": 1.0, "images_per_second": 20.0},
        {"step": 15, "validation_loss/ema": 1.0},
        {"step": 20, "loss": 1.0, "images_per_second": 40.0},
    ]
    assert training_seconds(records, 8) == 10 * 8 / 20 + 10 * 8 / 40


def test_the_page_says_every_figure_and_is_sound(made, tmp_path):
    plan = made(hypothesis="<b>Quicker</b> & better.")
    found = answer(plan, "fluxsmith study <x>", {})
    write_study_page(plan, found, tmp_path / "index.html")
    page = Page(tmp_path / "index.html")
    assert page.headings == ["answer", "arms", "figures", "curves", "cost", "provenance"]
    assert "<b>Quicker</b> & better." in page.text
    assert "fluxsmith study <x>" in page.text
    assert "b" not in {tag for tag, _ in page.elements}
    assert found["verdicts"]["fast"] in page.text.replace(" ,", ",")
    assert len(page.plots) == 6
    for name in ("g2.prompt_accuracy", "best.frechet", "slow", "fast"):
        assert name in page.text + page.drawn_text


def test_the_same_as_markdown(made, tmp_path):
    plan = made()
    write_markdown(plan, answer(plan, "fluxsmith study x", {}), tmp_path / "docs" / "x.md")
    text = (tmp_path / "docs" / "x.md").read_text(encoding="utf-8")
    assert "A quicker learning rate is better." in text
    assert "better by 10." in text
    for name in ("answer-1.svg", "curves-0.svg"):
        assert f"](x/{name})" in text
        assert (tmp_path / "docs" / "x" / name).stat().st_size > 1000
