"""A report is one page that needs nothing else, says every number, and can be trusted with any
text: of one model, and of several side by side."""

import json
import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from evaluation_models import Shown, any_picture, of_the_label
from helpers import randomise
from html_page import Page

from fluxsmith.evaluation.evaluators import named
from fluxsmith.evaluation.measurement import measure
from fluxsmith.evaluation.report.page import Evaluation, write_report
from fluxsmith.evaluation.report.parts import Picture
from fluxsmith.evaluation.samples import Samples, Settings

HOSTILE = "<script>alert(\"1\")</script> & '$x_1$' \x00 \ud800"
SETTINGS = Settings(
    num_samples=60, steps=3, validation_images=6, trajectories=4, sweep_samples=20,
    likelihood_images=2,
)  # fmt: skip
BY = {"checkpoint": Path("run/diffusion-0.pt"), "weights": "ema", "command": "fluxsmith evaluate x"}


def evaluation(reference, pick=of_the_label, name="test", metrics="all", settings=SETTINGS):
    sampler = Shown(reference.test, pick)
    randomise(sampler.pipeline, 0.05)
    samples = Samples(sampler, reference, settings)
    return Evaluation({**measure(samples, named(metrics), **BY), "name": name}, samples)


@pytest.fixture(scope="module")
def whole(reference):
    return evaluation(reference)


@pytest.fixture(scope="module")
def page(whole, tmp_path_factory):
    return Page(write_report(tmp_path_factory.mktemp("report") / "new" / "folder", whole))


def comparison(a, b, verdict, metric="prompt accuracy", **numbers):
    given = {"difference": 0.0123, "interval": [-0.0045, 0.0291], "p": 0.152, "p_adjusted": 0.304}
    return {"a": a, "b": b, "metric": metric, "verdict": verdict, **given, **numbers}


@pytest.fixture(scope="module")
def compared(reference, whole, tmp_path_factory):
    models = [whole._replace(results={**whole.results, "name": "first"})]
    models += [evaluation(reference, any_picture, "second")]
    said = [
        comparison("first", "second", "better", p=1e-9),
        comparison("first", "second", "equal", "Fréchet distance", difference=48.86),
    ]
    return Page(write_report(tmp_path_factory.mktemp("compared"), *models, comparisons=said))


@pytest.mark.parametrize("kind", ["page", "compared"])
def test_the_page_loads_nothing_and_is_sound(kind, request):
    page = request.getfixturevalue(kind)
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href", "srcset", "data", "action"):
                assert re.match(r"data:image/(png|svg\+xml);base64,|#", value), (tag, key, value)
    assert page.elements[0] == ("html", {"lang": "en"})
    assert page.named("meta")[0] == {"charset": "utf-8"}
    assert all(image["alt"] for image in page.named("img"))
    assert all(header["scope"] for header in page.named("th"))
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    assert {link["href"].removeprefix("#") for link in page.named("a")} == set(page.headings)
    assert len(page.plots) >= 6


def test_every_number_is_on_the_page(page, whole):
    text = f"{page.text} {page.drawn_text}".replace("−", "-").replace(",", "")
    shown = {float(found) for found in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)}
    shown |= {float(found) / 100 for found in re.findall(r"(-?\d+(?:\.\d+)?)(?:%| percent)", text)}

    def missing(data, where=""):
        if isinstance(data, dict):
            return [m for key, value in data.items() for m in missing(value, f"{where}/{key}")]
        if isinstance(data, (list, tuple)):
            if where.endswith("_quantiles"):  # drawn; a table has some of them
                data = [data[0], data[50], data[100]]
            return [m for value in data for m in missing(value, where)]
        if isinstance(data, str):
            return [] if data in page.text or data == "ema" else [(where, data)]
        if data is None or where.endswith(("stderr", "unbiased", "sample", "training_image")):
            return []  # an interval says it; the place of a picture that is shown
        slack = 6e-4 if where.endswith("spread") else 6e-5  # digits beyond the last shown
        near = any(abs(data - value) <= 0.006 * abs(data) + slack for value in shown)
        return [] if near else [(where, data)]

    elsewhere = "config", "table"  # which is the terminal's form of the same
    told = {key: value for key, value in whole.results.items() if key not in elsewhere}
    assert missing(told) == []


def test_only_what_was_measured_is_shown(reference, tmp_path):
    less = evaluation(reference, metrics="straightness,feature_distance")
    page = Page(write_report(tmp_path, less))
    assert page.headings == ["figures", "samples", "trajectories", "feature_distance",
                             "straightness", "cost", "provenance"]  # fmt: skip
    assert "Precision" in page.text
    assert "Prompt accuracy" not in page.text


def test_sections_follow_the_order_of_questions(page):
    assert page.headings[:3] == ["figures", "samples", "trajectories"]
    assert page.headings[3:-2] == list(named("all"))
    assert page.headings[-2:] == ["cost", "provenance"]


def test_hostile_text_stays_text(whole, tmp_path):
    found = whole._replace(results=deepcopy(whole.results) | {"name": HOSTILE})
    results = found.results["results"]
    found.results["config"]["name"] = found.results["provenance"]["command"] = HOSTILE
    captions = results["prompt_accuracy"]["by_caption"]
    captions[HOSTILE] = next(iter(captions.values()))
    results["prompt_accuracy"]["labels"] = [HOSTILE] * 10
    results["diversity"]["by_label"] = {HOSTILE: 0.5, "_" + HOSTILE: 0.6}
    one = Page(write_report(tmp_path / "one", found))
    said = [comparison(HOSTILE, "b", "<b>better", "<i>accuracy")]
    two = Page(write_report(tmp_path / "two", found, whole, comparisons=said))
    for page in (one, two):
        assert not {"script", "b", "i"} & {tag for tag, _ in page.elements}
        assert page.text.count('<script>alert("1")</script>') >= 5
        assert not re.search(r"[\x00-\x08\x0b-\x1f\ud800]", page.text)
        assert page.plots  # they are XML


def test_figures_that_are_no_numbers_still_make_a_page(reference, tmp_path):
    """As of a model whose weights are NaN."""
    found = evaluation(reference, metrics="straightness,validation_loss")
    found.results["results"]["straightness"]["value"] = float("nan")
    for grid in found.results["results"]["validation_loss"]["grids"].values():
        grid["mean"] = float("inf")
    Page(write_report(tmp_path, found))
    data = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert data["results"]["straightness"].pop("value") is None
    assert data["results"]["straightness"]["by_t"]


def test_a_hundred_labels_and_large_coloured_pictures_still_make_a_page_to_mail(whole, tmp_path):
    results = json.loads(json.dumps(whole.results))
    accuracy = results["results"]["prompt_accuracy"]
    accuracy["confusion"] = [[9 if i == j else 1 for j in range(100)] for i in range(100)]
    accuracy["labels"] = [f"label number {i}" for i in range(100)]
    path = write_report(tmp_path, whole._replace(results=results))
    assert path.stat().st_size < 2_000_000
    assert "label number 99" not in Page(path).text  # not each has room for its name
    photo = torch.arange(256, dtype=torch.uint8).repeat(3, 1024, 4)  # (3, 1024, 1024)
    shown = Picture.of(photo, "a photo")
    assert (shown.width, shown.height) == (128, 128)
    assert len(shown.source) < 50_000


def test_each_model_has_a_column_and_each_difference_its_verdict(compared):
    assert compared.headings[:3] == ["figures", "differences", "samples"]
    for name in ("first", "second"):
        assert compared.text.count(name) >= 10
    numbers = ("1.23%", "−0.45% to 2.91%", "0.15", "0.30", "< 0.0001", "48.86")
    for said in (*numbers, "equal", "better"):
        assert said in compared.text, said
    assert "no difference was seen at 95%" in compared.text
    assert "Not measured alike" not in compared.text


def test_samples_of_one_prompt_stand_beneath_each_other(compared):
    pictures = [image["alt"] for image in compared.named("img")]
    assert pictures[:2] == ["0, first, sample 1", "0, first, sample 2"]
    assert pictures[3] == "0, second, sample 1"


def test_the_same_evaluation_gives_the_same_bytes(whole, tmp_path):
    files = [write_report(tmp_path / name, whole) for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_unequal_measuring_is_pointed_out_and_evaluators_may_differ(whole, reference, tmp_path):
    other = Settings(num_samples=30, guidance=4.5, trajectories=4)
    fewer = evaluation(reference, name="b", metrics="straightness", settings=other)
    text = Page(write_report(tmp_path, whole, fewer)).text
    for setting in ("samples", "steps", "guidance"):
        assert f"Not measured alike: {setting} differs" in text
    assert "alike: solver" not in text
    data = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert data["format"] == "fluxsmith-comparison/1"
    assert [model["name"] for model in data["models"]] == ["test", "b"]
