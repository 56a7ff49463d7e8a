"""From runs to study.json and the page: nothing is left out, and what failed is said."""

import json

import pytest
from html_page import Page
from study_makers import declare, planned, simulate

from fluxsmith.studies.answer import answer
from fluxsmith.studies.execution import outcome
from fluxsmith.studies.laboratory import seconds_left
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
    for drawings, state in (GRIDS, "done"), ({"g1": {}, "g2": {"guidance": 3}}, "unmeasured"):
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
    assert "Changed after an answer had been seen: seeds (3, then 4)." in later["notes"][0]
    again = answer(made(seeds=4), "", later)
    assert again["looks"] == later["looks"]
    assert again["notes"] == later["notes"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [0, 1, 2, 9]}, "seeds (4, then [0, 1, 2, 9])"),
        ({"primary": "g2.frechet"}, 'primary ("g2.prompt_accuracy", then "g2.frechet")'),
        ({"smallest_difference": 0.2}, "smallest_difference (0.01, then 0.2)"),
        ({"alpha": 0.1}, "alpha (0.05, then 0.1)"),
        ({"baseline": "fast"}, 'baseline ("slow", then "fast")'),
        ({"drawings": GRIDS | {"g2": {"guidance": 3}}}, '"guidance": 3.0'),
    ],
)
def test_a_question_changed_after_an_answer_is_said(made, changes, said):
    first = json.loads(json.dumps(answer(made(), "", {})))
    as_before = first | {"looks": [4]}  # by an earlier version
    for before in (first, as_before):
        found = answer(made(**changes), "", before)
        assert said in found["notes"][0]
        assert len(found["looks"]) == 2
    assert answer(made(), "", as_before)["notes"] == []
    more = GRIDS | {"g3": {"guidance": 3}}
    assert (
        answer(made(drawings=more, figures=["g1.frechet", "g3.frechet"]), "", first)["notes"] == []
    )


def change(plan, run, **changes):
    """Puts other things into a run's evaluation.json."""
    path = plan.run_folder(run) / "evaluation.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(found | changes), encoding="utf-8")


def test_seconds_that_were_not_equal_are_in_the_verdict(made):
    plan = made(equal="seconds")
    for run in plan.runs:
        change(plan, run, seconds=13.0 if run.arm == "fast" else 10.0)
    found = answer(plan, "", {})
    assert found["verdicts"]["fast"].endswith("; it had 30% more seconds")
    assert found["notes"] == [
        "fast trained for 30% more seconds than slow in the end, though both were fitted to be "
        "equal."
    ]


def test_other_code_and_other_data_between_runs_are_said(made):
    plan = made()
    change(plan, Run("fast", 1), code=["abc", "def"])
    assert answer(plan, "", {})["notes"] == [
        "The runs were not all made by the same code of fluxsmith (7 of abc, 1 of abc and def)."
    ]
    plan = made()
    for run in plan.runs:
        found = json.loads((plan.run_folder(run) / "evaluation.json").read_text(encoding="utf-8"))
        data = {"data_digest": "new" if run.seed == 3 else "old"}
        drawings = {name: d | {"provenance": data} for name, d in found["drawings"].items()}
        change(plan, run, drawings=drawings)
    [note] = answer(plan, "", {})["notes"]
    assert note.startswith("The data changed between runs (digests: 6 of old, 2 of new)")
    plan = made()
    for run in plan.runs:
        change(plan, run, teacher=f"{run.seed > 1}")
    [note] = answer(plan, "", {})["notes"]
    assert note.startswith("The teacher changed between runs (digests: 4 of False, 4 of True)")


def test_runs_that_lack_drawings_keep_their_figures_and_need_no_training(made):
    plan, run = made(), Run("slow", 0)
    assert seconds_left(plan, "slow", plan.runs[:1]) == 0
    more = {"drawings": GRIDS | {"g3": {"guidance": 3}}, "figures": ["g3.frechet", "g1.frechet"]}
    plan = planned(declare(plan.folder.parents[2], seeds=4, primary="g2.prompt_accuracy", **more),
                   plan.folder)  # fmt: skip
    assert outcome(plan, run).state == "unmeasured"
    found = answer(plan, "", {})
    assert found["verdicts"]["fast"].startswith("better by 10.")
    assert "g3.frechet" not in found["runs"][0]["figures"]
    assert "slow: 4 of 4 runs are not measured in all drawings" in found["notes"][0]
    write_study_page(plan, found, plan.folder / "index.html")
    anew = seconds_left(plan, "slow", [run], anew=True)
    assert seconds_left(plan, "slow", [run]) == anew  # there is no checkpoint to draw with
    (plan.run_folder(run) / "diffusion-12.pt").touch()
    drawing = seconds_left(plan, "slow", [run])
    assert 0 < drawing < anew - 12 * 0.01
    (plan.run_folder(run) / "evaluation.json").unlink()
    assert outcome(plan, run).state == "unmeasured"
    assert seconds_left(plan, "slow", [run]) == pytest.approx(anew - 12 * 0.01)


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
