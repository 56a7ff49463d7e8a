"""Models side by side: each one named, each difference with what chance allows to say of it."""

import json

import pytest
import report_example
from test_report_page import HOSTILE, Page

from fluxsmith.evaluation.report import Gallery, write_comparison

NAMES = ("first", "second", "third")


def comparison(a, b, verdict, metric="prompt accuracy", **numbers):
    given = {"difference": 0.0123, "interval": [-0.0045, 0.0291], "p": 0.152, "p_adjusted": 0.304}
    return {"a": a, "b": b, "metric": metric, "verdict": verdict, **given, **numbers}


def entries(*names, **results):
    return [(report_example.results(name, **results), report_example.gallery()) for name in names]


def unmeasured(*names):
    return [({**report_example.results(name), "results": {}}, Gallery()) for name in names]


def written(folder, *arguments) -> str:
    return write_comparison(*arguments, folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    models = entries(*NAMES[:2]) + entries(NAMES[2], accuracy=0.713, frechet=61.2)
    said = [
        comparison(*NAMES[:2], "equal"),
        comparison(
            "first", "third", "better", difference=0.2601, interval=[0.2411, 0.2788], p=1e-9
        ),
        comparison("third", "second", "worse", "Fréchet distance", difference=48.86),
    ]
    return written(tmp_path_factory.mktemp("comparison"), models, said)


@pytest.fixture(scope="module")
def page(source) -> Page:
    return Page(source)


def test_each_model_has_a_column_and_is_in_each_plot(page, source):
    for name in NAMES:
        assert page.text.count(name) >= 12
        assert source.count(f'<th scope="col">{name}</th>') == 3  # figures, prompts, cost
    drawings = [svg for svg in page.named("svg") if svg.get("role") == "img"]
    assert len(drawings) == 4
    assert "mathdefault" not in source  # on a logarithmic axis


def test_each_difference_has_its_numbers_and_its_verdict(page):
    for said in ("1.23%", "−0.45% to 2.91%", "24.1% to 27.9%", "0.15", "0.30", "< 0.0001", "48.86"):
        assert said in page.text, said
    for verdict in ("equal", "better", "worse"):
        assert f" {verdict} " in page.text
    assert "no difference was seen at 95%" in page.text


def test_samples_of_one_prompt_stand_beneath_each_other(page):
    pictures = [image["alt"] for image in page.named("img")]
    assert pictures[:2] == ["3, first, sample 1 of 10", "3, first, sample 2 of 10"]
    assert pictures[10] == "3, second, sample 1 of 10"
    assert pictures[20] == "3, third, sample 1 of 10"
    assert pictures[30] == "three, first, sample 1 of 10"


def test_the_page_is_one_and_the_same(tmp_path, page):
    arguments = (entries("a", "b"), [comparison("a", "b", "equal")])
    assert written(tmp_path / "1", *arguments) == written(tmp_path / "2", *arguments)
    for tag, attributes in page.elements:
        assert tag not in ("script", "link")
        assert (attributes.get("src") or "data:").startswith("data:")
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))


def test_unequal_measuring_is_pointed_out(tmp_path, page):
    assert "Not measured alike" not in page.text
    models = unmeasured("a", "b")
    models[1][0]["settings"]["guidance"] = 4.5
    text = Page(written(tmp_path, models, [])).text
    assert "Not measured alike: guidance differ" in " ".join(text.split())


def test_models_of_one_name_are_told_apart(tmp_path):
    models = unmeasured("same", "same", "same")
    models[0][0]["step"] = 500
    text = Page(written(tmp_path, models, [])).text
    for name in (
        "same (step 500, ema)",
        "same (step 12,000, ema) #1",
        "same (step 12,000, ema) #2",
    ):
        assert name in text


def test_models_may_have_been_measured_by_different_evaluators(tmp_path):
    models = [*entries("whole"), ({"name": "empty", "results": {}}, Gallery())]
    text = Page(written(tmp_path, models, [])).text
    assert "empty" in text
    Page(written(tmp_path, [({}, Gallery()), ({}, Gallery())], []))


def test_hostile_names_stay_text(tmp_path):
    said = [comparison(HOSTILE, "b", "<b>better", "<i>accuracy")]
    page = Page(written(tmp_path, entries(HOSTILE, "b"), said))
    assert not {"script", "b", "i"} & {tag for tag, _ in page.elements}


def test_the_data_lie_beside_the_page(tmp_path):
    said = [comparison("a", "b", "equal")]
    written(tmp_path, unmeasured("a", "b"), said)
    data = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert data["format"] == "fluxsmith-comparison/1"
    assert [model["name"] for model in data["models"]] == ["a", "b"]
    assert data["comparisons"] == said
