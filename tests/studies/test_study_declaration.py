"""A study's mistakes are one line each, before anything is run; figures have names."""

import pytest
from helpers import held_by_a_process
from study_makers import declare, planned

from fluxsmith.cli import main
from fluxsmith.errors import UserError
from fluxsmith.studies.declaration import read_study
from fluxsmith.studies.figures import StudyFigure
from fluxsmith.studies.planning import write_plan

G2 = {"g1": {"guidance": 1}, "g2": {"guidance": 2}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": 1}, "seeds=1: one seed has no spread"),
        ({"seeds": "2"}, "seeds='2': must be a number, or a list of numbers"),
        ({"seeds": [3, 3]}, "seeds=[3, 3]: must be different"),
        ({"arms": {"a": []}}, "must be two or more"),
        ({"arms": None}, "arms: missing"),
        ({"arms": {"a": [], "b/c": ["seed=1"]}}, "arms.b/c: names a folder"),
        ({"arms": {"a": [], "A": ["train.steps=3"]}}, "two names differ in case only"),
        ({"arms": {"a": [], "b": ["seed=1"]}}, "seed=1: every run gets its seed from the study"),
        ({"arms": {"a": [], "b": ["train.steps=12"]}}, "arms.b: the same runs as arms.a"),
        ({"arms": {"a": [], "b": ["model.hidden_size=33"]}}, "arms.b: base.yaml: model"),
        ({"arms": {"a": [], "b": ["train.optimiser=none"]}}, "arms.b: train.optimiser=none"),
        ({"arms": {"a": [], "b": ["model.dpth=3"]}}, "did you mean model.depth?"),
        ({"arms": {"a": [], "b": ["train.steps=24"]}}, "arms.b: equal=steps can't be met"),
        ({"primary": "prompt_acuracy"}, "prompt_acuracy; did you mean prompt_accuracy"),
        ({"primary": "g3.frechet"}, "unknown drawing g3; there are g1, best"),
        ({"figures": ["frechet@diversity=0.8"]}, "is read between drawings"),
        ({"primary": None}, "primary: missing"),
        ({"baseline": "quick"}, "baseline=quick: must be an arm, one of slow, fast"),
        ({"fit": "train.steps"}, "fit=train.steps: equal=steps fits no key"),
        ({"equal": "parameters", "fit": "train.steps"}, "equal=parameters fits model.hidden_size"),
        ({"equal": "time"}, "equal='time': must be"),
        ({"hypothesys": "x"}, "hypothesys: unknown key; did you mean hypothesis?"),
        ({"base": "bas.yaml"}, "no config at bas.yaml"),
        ({"smallest_difference": 0}, "smallest_difference=0: must be greater than 0"),
        ({"drawings": {"g1": {}, "g2": {}}}, "drawings.g2: no figure is read from it; remove it"),
        ({"drawings": {"best": {}}}, "drawings.best: stands for the best"),
        ({"drawings": {"a/b": {"guidance": 1}}}, "drawings.a/b: names a folder"),
        ({"arms": {"a": [], 2: ["train.steps=6"]}}, "arms.2=2: must be a text; put it in quotes"),
        ({"arms": {"a": [], True: ["train.steps=6"]}}, "must be a text; put it in quotes"),
        ({"arms": {"a": [], "b": {"train": {1: 2}}}}, "train.1"),
        ({"arms": {"a": [], "b": ["train.log_every=3", "evaluate.every=3"]}},
         "arms.b: the same runs as arms.a"),
        ({"arms": None, "grid": {"model.depth": [1, 1, 2]}},
         "grid: two arms would be called depth=1; give each value once"),
        ({"arms": None, "grid": {"flow.timesteps": ["a b", "a/b"]}},
         "grid: two arms would be called timesteps=a-b"),
        ({"arms": None, "grid": {"flow.timesteps": ["a" * 80, "b"]}},
         "81 at most; give arms in place of the grid"),
        (
            {"equal": "flops", "arms": {"a": [], "b": ["train.steps=3"]}},
            "arms.b: train.steps is fitted (fit=train.steps); remove it",
        ),
        (
            {"equal": "parameters", "fit": "model.depth",
             "arms": {"a": [], "b": ["model.depth_single_blocks=9"]}},
            "arms.b: equal=parameters can't be met within 2%",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(changes, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    declare(tmp_path, **changes)
    with pytest.raises(SystemExit) as exit_:
        main(["study", "study.yaml", "--dry-run"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "output").exists()


def test_a_figure_that_the_data_do_not_have_is_refused_before_anything_is_trained(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    declare(tmp_path, primary="composition")
    with pytest.raises(SystemExit) as exit_:
        main(["study", "study.yaml"])
    assert exit_.value.code == 2
    assert "composition: is for data.source=colored-digits" in capsys.readouterr().err
    assert not list(tmp_path.glob("output/studies/study/runs/*"))


def test_figures_that_models_of_this_kind_do_not_have_are_refused_too(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    kind = ["objective.kind=fill", "model.conditioning=fill"]
    declare(tmp_path, primary="straightness", overrides=kind)
    with pytest.raises(SystemExit) as exit_:
        main(["study", "study.yaml"])
    assert exit_.value.code == 2
    assert "straightness: it gives no pictures" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main(["study", "study.yaml", "--markdown", "answer"])
    assert exit_.value.code == 2
    assert "name it answer.md" in capsys.readouterr().err


def test_runs_that_are_still_trained_are_not_deleted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = planned(declare(tmp_path), tmp_path / "study")
    folder = plan.run_folder(plan.runs[0])
    folder.mkdir(parents=True)
    with (
        held_by_a_process(folder),
        pytest.raises(UserError, match="its training still goes on"),
    ):
        write_plan(plan, restart=True)
    write_plan(plan, restart=True)
    assert not folder.exists()


def test_a_missing_study_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    declare(tmp_path / "studies")
    with pytest.raises(SystemExit):
        main(["study", "studies/stdy.yaml"])
    assert (
        "no study at studies/stdy.yaml; did you mean studies/study.yaml?" in capsys.readouterr().err
    )


def test_a_grid_is_every_combination(tmp_path):
    grid = {"model.depth": [1, 2], "flow.timesteps": ["uniform", "logit_normal"]}
    study = read_study(declare(tmp_path, arms=None, grid=grid))
    assert list(study.all_arms) == [
        "depth=1,timesteps=uniform", "depth=1,timesteps=logit_normal",
        "depth=2,timesteps=uniform", "depth=2,timesteps=logit_normal",
    ]  # fmt: skip
    assert study.all_arms["depth=2,timesteps=uniform"] == [
        "model.depth=2", 'flow.timesteps="uniform"',
    ]  # fmt: skip
    assert study.against == "depth=1,timesteps=uniform"


def test_overrides_are_texts_or_a_mapping_nested_or_not(tmp_path):
    texts = {"a": ["model.depth=2", "model.theta=1e4"], "b": []}
    assert read_study(declare(tmp_path, arms={"a": "model.depth=2", "b": []})).arms["a"] == [
        "model.depth=2"
    ]
    nested = {"a": {"model": {"depth": 2, "theta": 1e4}}, "b": None}
    dotted = {"a": {"model.depth": 2, "model.theta": 1e4}, "b": {}}
    studies = [read_study(declare(tmp_path, arms=arms)) for arms in (texts, nested, dotted)]
    assert studies[1].all_arms == studies[2].all_arms
    assert [key.partition("=")[0] for key in studies[1].all_arms["a"]] == [
        "model.depth", "model.theta",
    ]  # fmt: skip
    assert studies[0].all_arms["b"] == studies[1].all_arms["b"] == []


def found(diversity, frechet):
    return {
        "feature_distance": {"frechet": {"value": frechet}},
        "diversity": {"overall": diversity},
    }


def test_figures_are_read_from_their_drawing_the_best_one_or_between_two():
    measured = {"g1": found(0.9, 50.0), "g2": found(0.7, 30.0), "g3": found(0.5, 70.0)}

    assert StudyFigure.read("g1.5.frechet", ["g1.5"]).value({"g1.5": found(0.9, 50.0)}) == 50

    def value(name, of=measured):
        return StudyFigure.read(name, list(measured)).value(of)

    assert value("frechet") == value("g1.frechet") == 50
    assert value("best.frechet") == 30
    assert value("best.diversity") == 0.9
    assert value("frechet@diversity=0.8") == pytest.approx(40)
    assert value("frechet@diversity=0.6") == pytest.approx(50)
    assert value("frechet@diversity=0.4") is None
    assert value("g2.frechet", {**measured, "g2": found(0.7, None)}) is None
    assert value("best.frechet", {"g1": measured["g1"]}) is None


def test_only_what_figures_need_is_measured(tmp_path):
    figures = ["g2.frechet", "prompt_accuracy@diversity=0.9"]
    study = read_study(declare(tmp_path, drawings=G2, figures=figures))
    assert study.evaluators("g1") == ("validation_loss", "prompt_accuracy", "diversity")
    assert study.evaluators("g2") == ("feature_distance", "prompt_accuracy", "diversity")


def test_an_unknown_figure_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"there are .*frechet"):
        read_study(declare(tmp_path, primary="zzz"))
