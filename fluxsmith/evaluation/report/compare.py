"""Several models side by side on one page, with what chance allows to say of their differences."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxsmith.evaluation.report import pictures, together
from fluxsmith.evaluation.report.document import document, write_page
from fluxsmith.evaluation.report.gallery import Gallery
from fluxsmith.evaluation.report.headline import Measure, measures, read
from fluxsmith.evaluation.report.markup import Child, Markup, table, tag
from fluxsmith.evaluation.report.page import present
from fluxsmith.evaluation.report.repeating import WEIGHTS, repeating, settings_in_words, title
from fluxsmith.evaluation.report.together import found
from fluxsmith.evaluation.report.wording import (
    NOTHING,
    duration,
    interval,
    is_number,
    number,
    percent,
    prompt_name,
)

Found = Mapping[str, Any]
Models = Mapping[str, Found]  # results by the name that the page gives the model
FORMAT = "fluxsmith-comparison/1"


def write_comparison(
    entries: Sequence[tuple[Found, Gallery]], comparisons: Sequence[Found], folder: Path
) -> Path:
    """Writes index.html and results.json into the folder, which it makes; gives the page's path.

    Each entry is a model's results, as `write_report` takes them, with its pictures. A comparison
    has a, b, metric, difference, interval, p, p_adjusted and verdict, which says what a is against
    b: equal, better or worse.
    """
    names = _names([results for results, _ in entries])
    models = dict(zip(names, (results for results, _ in entries), strict=True))
    galleries = dict(zip(names, (gallery for _, gallery in entries), strict=True))
    sections = present(
        ("models", "The models", _models(models)),
        ("headline", "In numbers", _headline(models)),
        ("differences", "Are the differences real?", _differences(comparisons)),
        ("samples", "The same prompts and seeds", _samples(galleries)),
        ("loss", "Loss by timestep", together.loss(models)),
        ("accuracy", "Prompt accuracy by prompt", _by_prompt(models)),
        ("cost-and-quality", "Quality against steps and guidance", together.sweep(models)),
        ("memorisation", "Memorisation", together.memorisation(models)),
        ("cost", "What it cost", _cost(models)),
        ("repeat", "To repeat it", _repeating(models)),
    )
    page = document(" · ".join(names), None, sections)
    data = {
        "format": FORMAT,
        "models": [dict(results) for results, _ in entries],
        "comparisons": [dict(each) for each in comparisons],
    }
    return write_page(folder, page, data)


def _names(results: Sequence[Found]) -> list[str]:
    """Their own names; where two models share one, with step and weights, then with a number."""
    plain = [title(each) for each in results]
    fuller = [
        f"{name} (step {number(each.get('step'))}, {each.get('weights')})"
        if plain.count(name) > 1
        else name
        for name, each in zip(plain, results, strict=True)
    ]
    return [
        f"{name} #{fuller[: i + 1].count(name)}" if fuller.count(name) > 1 else name
        for i, name in enumerate(fuller)
    ]


def _models(models: Models) -> list[Child]:
    rows = [
        (
            name,
            number(each.get("step")),
            WEIGHTS.get(each.get("weights", ""), str(each.get("weights", NOTHING))),
            ", ".join(settings_in_words(each)),
            str(each.get("model", NOTHING)),
        )
        for name, each in models.items()
    ]
    head = ["model", "step", "weights", "drawn with", "digest"]
    content: list[Child] = [tag("div", table("What is compared", head, rows), class_="words")]
    unlike = _unlike(models)
    if unlike:
        said = f" {', '.join(unlike)} differ between these models, and so may the numbers."
        content.append(tag("p", tag("strong", "Not measured alike:"), said, class_="note"))
    return content


def _unlike(models: Models) -> list[str]:
    """What should be the same in a fair comparison and isn't."""
    parts: dict[str, list[Any]] = {}
    for each in models.values():
        settings, provenance = each.get("settings") or {}, each.get("provenance") or {}
        for key in ("num_samples", "steps", "guidance", "solver", "seed"):
            parts.setdefault(key.replace("num_", ""), []).append(settings.get(key))
        parts.setdefault("data", []).append(provenance.get("data_digest"))
    return [key for key, values in parts.items() if any(each != values[0] for each in values)]


def _headline(models: Models) -> Child:
    """A row for each measure, a column for each model."""
    known: dict[str, Measure] = {}
    for results in models.values():
        known.update({each.name: each for each in measures(results)})
    rows: list[list[Child]] = []
    for measure in known.values():
        readings = [read(results, measure) for results in models.values()]
        cells: list[Child] = []
        floor = NOTHING
        for reading in readings:
            if reading is None:
                cells.append(NOTHING)
                continue
            value = tag("strong", measure.show(reading.value))
            ends = interval(reading.interval, measure.show, reading.value)
            cells.append([value, tag("span", ends, class_="ends") if ends != NOTHING else None])
            floor = measure.show(reading.floor, reading.value) if floor == NOTHING else floor
        rows.append([measure.name, *cells, floor])
    if not rows:
        return None
    caption = "Values with their 95% intervals; last, what real images score in a sample's place."
    meanings = [[tag("dt", measure.name), tag("dd", measure.meaning)] for measure in known.values()]
    return [
        table(caption, ["measure", *models, "real images"], rows),
        tag("details", tag("summary", "What each number means"), tag("dl", meanings)),
    ]


EQUAL = (
    "“Equal” means that no difference was seen at 95%: the models may still differ by what the "
    "interval allows. “Better” and “worse” are said of the first model against the second, where "
    "p, adjusted for the number of comparisons, is below 0.05; a Fréchet distance has to differ by "
    "more than a tenth, since another training seed changes it by about as much. Samples are "
    "paired by prompt and seed."
)


def _differences(comparisons: Sequence[Found]) -> Child:
    """A table for each measure."""
    if not comparisons:
        return None
    measured = list(dict.fromkeys(str(each.get("metric", "")) for each in comparisons))
    return [
        tag("p", EQUAL),
        [
            _differences_in(metric, [c for c in comparisons if str(c.get("metric", "")) == metric])
            for metric in measured
        ],
    ]


def _differences_in(metric: str, comparisons: Sequence[Found]) -> Markup:
    share = "accuracy" in metric
    show = percent if share else number
    rows: list[list[Child]] = []
    for each in comparisons:
        difference, verdict = each.get("difference"), str(each.get("verdict", NOTHING))
        ends = each.get("interval") or ()
        scale = max((abs(value) for value in (difference, *ends) if is_number(value)), default=None)
        rows.append(
            [
                f"{each.get('a', '')} against {each.get('b', '')}",
                tag("span", verdict, class_=verdict if verdict in ("better", "worse") else None),
                show(difference, scale),
                interval(ends, show, scale),
                _p(each.get("p")),
                _p(each.get("p_adjusted")),
            ]
        )
    unit = ", in percentage points" if share else ""
    head = ["models", "verdict", "difference", "95% interval", "p", "p, adjusted"]
    return table(f"Difference in {metric}, first model less second{unit}", head, rows)


def _p(value: Any) -> str:
    if not is_number(value):
        return NOTHING
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _samples(galleries: Mapping[str, Gallery]) -> Child:
    """For each prompt a row of pictures from each model, equal seeds beneath each other."""
    prompts: dict[str, dict[str, list[Markup]]] = {}
    for name, gallery in galleries.items():
        for caption, images in gallery.samples:
            row = pictures.row_of_samples(images, f"{prompt_name(caption)}, {name}")
            prompts.setdefault(caption, {})[name] = row
    return [
        [tag("h3", prompt_name(caption)), tag("dl", _strips(rows), class_="strips aligned")]
        for caption, rows in prompts.items()
    ]


def _strips(rows: Mapping[str, Child]) -> list[Child]:
    return [[tag("dt", name), tag("dd", images)] for name, images in rows.items()]


def _by_prompt(models: Models) -> Child:
    """A row for each prompt, a column for each model."""
    by_caption = {
        name: found(results, "prompt_accuracy").get("by_caption") or {}
        for name, results in models.items()
    }
    captions = list(dict.fromkeys(caption for each in by_caption.values() for caption in each))
    rows = [
        [
            prompt_name(caption),
            *(percent((by_caption[name].get(caption) or {}).get("accuracy")) for name in models),
        ]
        for caption in captions
    ]
    return (
        [table("Share of samples that show the prompt", ["prompt", *models], rows)]
        if rows
        else None
    )


def _cost(models: Models) -> Child:
    seconds = {name: results.get("seconds") or {} for name, results in models.items()}
    evaluators = list(dict.fromkeys(key for each in seconds.values() for key in each))
    rows = [
        [key.replace("_", " "), *(duration(each.get(key)) for each in seconds.values())]
        for key in evaluators
    ]
    if not rows:
        return None
    sums = [sum(v for v in each.values() if is_number(v)) for each in seconds.values()]
    rows.append(["all", *map(duration, sums)])
    return table("Time that each evaluation took", ["evaluation", *models], rows)


def _repeating(models: Models) -> Child:
    return [[tag("h3", name), repeating(results)] for name, results in models.items()]
