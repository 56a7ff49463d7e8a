"""A report is one page that needs nothing else, says every number, and can be trusted with any
text."""

import copy
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import report_example
import torch

from fluxsmith.evaluation.report import Gallery, write_report

HOSTILE = "<script>alert(\"1\")</script> & '$x_1$' \x00 \ud800"
SECTIONS = {  # by evaluator
    "validation_loss": "loss",
    "prompt_accuracy": "accuracy",
    "feature_distance": None,  # among the headline's numbers only
    "sweep": "cost-and-quality",
    "memorisation": "memorisation",
    "diversity": "diversity",
    "straightness": "diversity",
    "likelihood": "likelihood",
}


class Page(HTMLParser):
    """Fails on a page whose tags aren't closed in order; keeps what is on it."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):  # in SVG
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data + " "

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("report")
    path = write_report(report_example.results(), report_example.gallery(), folder)
    assert path == folder / "index.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source) -> Page:
    return Page(source)


def written(folder, results, gallery=None) -> str:
    path = write_report(results, gallery or Gallery(), folder)
    return path.read_text(encoding="utf-8")


def test_the_page_loads_nothing(page, source):
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href", "srcset", "data", "action"):
                assert value.startswith(("data:image/png;base64,", "#")), (tag, key, value)
    assert not re.search(r"url\(\s*['\"]?(?!#)", source)
    assert "@import" not in source
    assert set(re.findall(r"https?://[^\s\"'<]+", source)) <= {"http://www.w3.org/2000/svg"}


def test_the_page_says_what_it_is(page):
    assert page.elements[0] == ("html", {"lang": "en"})
    assert page.named("meta")[0] == {"charset": "utf-8"}
    assert any(meta.get("name") == "viewport" for meta in page.named("meta"))
    assert "mnist-small" in page.text
    assert all(image["alt"] for image in page.named("img"))
    assert all(header["scope"] for header in page.named("th"))
    drawings = [svg for svg in page.named("svg") if svg.get("aria-hidden") != "true"]
    assert len(drawings) == 6
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in drawings)


def test_no_identifier_is_used_twice_and_every_reference_leads_somewhere(page):
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    links = [a["href"] for _, a in page.elements if (a.get("href") or "").startswith("#")]
    assert len(links) > 20
    assert {link.removeprefix("#") for link in links} <= set(names)


def test_each_drawing_is_xml_in_the_page_s_own_ink(source):
    drawings = re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL)
    assert len(drawings) > 20
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert "#000000" not in drawing
        assert "font-family" not in drawing


def test_every_number_is_on_the_page(page):
    text = page.text.replace("−", "-").replace(",", "")
    shown = {float(found) for found in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)}
    shown |= {
        float(found) / 100 for found in re.findall(r"(-?\d+(?:\.\d+)?)(?:%| percentage)", text)
    }
    shown |= {60 * int(m) + int(s) for m, s in re.findall(r"(\d+) min (\d+) s", text)}

    def missing(data, where=""):
        if isinstance(data, dict):
            return [m for key, value in data.items() for m in missing(value, f"{where}/{key}")]
        if isinstance(data, list):
            if where.endswith("_quantiles"):  # drawn; a table has some of them
                data = [data[0], data[50], data[100]]
            return [m for value in data for m in missing(value, where)]
        if isinstance(data, str):
            return [] if data in page.text else [(where, data)]
        digits = 0.05 if where.endswith(("stderr", "spread")) else 0.006  # two digits or three
        near = any(abs(data - value) <= digits * abs(data) for value in shown)
        return [] if near else [(where, data)]

    results = report_example.results()
    results["weights"] = "EMA"
    assert missing(results) == []


@pytest.mark.parametrize("evaluator", SECTIONS)
def test_only_what_was_measured_is_shown(evaluator, tmp_path):
    whole = report_example.results()
    found = {"results": {evaluator: whole["results"][evaluator]}}
    headings = [a["id"] for name, a in Page(written(tmp_path, found)).elements if name == "h2"]
    expected = {"headline", SECTIONS[evaluator]} - {None}
    if evaluator == "sweep":  # has no single number
        expected.remove("headline")
    assert set(headings) == expected


@pytest.mark.parametrize(
    "results",
    [
        {},
        {"name": "bare", "results": {}},
        {"name": "null", "results": None, "settings": None, "provenance": None, "config": None},
        {"results": {"prompt_accuracy": {"accuracy": 0.5}, "validation_loss": {}, "sweep": {}}},
        {"results": {"prompt_accuracy": {"accuracy": None, "by_caption": {"3": {}}}}},
        {"results": {"feature_distance": {"frechet": {"value": float("nan")}}}},
        {"results": {"memorisation": {"near_copies": 0.1, "samples_quantiles": [1.0, 2.0]}}},
        {"results": {name: {} for name in SECTIONS}},
    ],
)
def test_a_page_of_little_or_nothing_is_a_page(results, tmp_path):
    Page(written(tmp_path, results))
    json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))


def test_sections_follow_the_order_of_questions(page):
    headings = [a["id"] for name, a in page.elements if name == "h2"]
    assert headings == [
        "headline",
        "samples",
        "trajectories",
        "loss",
        "accuracy",
        "cost-and-quality",
        "memorisation",
        "diversity",
        "likelihood",
        "cost",
        "repeat",
    ]


def test_hostile_text_stays_text(tmp_path):
    results = report_example.results(name=HOSTILE)
    accuracy = results["results"]["prompt_accuracy"]
    accuracy["by_caption"] = {HOSTILE: next(iter(accuracy["by_caption"].values()))}
    accuracy["labels"] = [HOSTILE] * 10
    results["config"]["name"] = HOSTILE
    results["provenance"]["command"] = HOSTILE
    results["results"]["diversity"]["by_label"] = {HOSTILE: 0.5}
    grids = results["results"]["validation_loss"]["grids"]
    grids[HOSTILE] = copy.deepcopy(grids["i/8"])
    grids["_" + HOSTILE] = copy.deepcopy(grids["i/8"])
    pictures = report_example.gallery(captions=[HOSTILE, "x"])
    source = written(tmp_path, results, pictures)
    page = Page(source)
    assert page.named("script") == []
    assert page.text.count('<script>alert("1")</script>') >= 10
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", source)
    for drawing in re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL):
        ElementTree.fromstring(drawing)


def test_the_same_input_gives_the_same_bytes(tmp_path, source):
    again = written(tmp_path, report_example.results(), report_example.gallery())
    assert again == source


def test_the_data_lie_beside_the_page(tmp_path):
    results = report_example.results()
    results["results"]["straightness"]["value"] = float("nan")
    write_report(results, Gallery(), tmp_path / "new" / "folder")
    data = json.loads((tmp_path / "new" / "folder" / "results.json").read_text(encoding="utf-8"))
    results["results"]["straightness"]["value"] = None
    assert data == results


def test_the_cheapest_setting_is_named(page):
    said = " ".join(page.text.split())
    assert (
        "within 1.3 percentage points of the best, and whose Fréchet distance is within 20% of the "
        "smallest: euler, 8 steps, guidance 2.5 (16 evaluations" in said
    )
    assert "The best: euler, 20 steps, guidance 2.5 (40 evaluations)" in said


def test_an_empty_prompt_has_a_name(tmp_path):
    source = written(tmp_path, {}, report_example.gallery(captions=["", "3"]))
    assert "(no prompt)" in Page(source).text


def test_a_hundred_labels_and_large_coloured_pictures_still_make_a_page_to_mail(tmp_path):
    results = report_example.results()
    accuracy = results["results"]["prompt_accuracy"]
    accuracy["confusion"] = [[9 if i == j else 1 for j in range(100)] for i in range(100)]
    accuracy["labels"] = [f"label number {i}" for i in range(100)]
    photo = torch.arange(256, dtype=torch.uint8).repeat(3, 1024, 4)  # (3, 1024, 1024)
    pictures = Gallery(samples=[("a photo", photo[None].expand(10, -1, -1, -1))])
    source = written(tmp_path, results, pictures)
    page = Page(source)
    assert len(source) < 2_000_000
    assert {image["width"] for image in page.named("img")} == {"128"}
    assert "label number 99" not in page.text  # not each has room for its name
