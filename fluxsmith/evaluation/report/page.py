"""The page: of one model, or of several compared. Everything it needs is inside it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Console
from torch import Tensor

from fluxsmith.data.images import to_uint8
from fluxsmith.evaluation.evaluators import EVALUATORS
from fluxsmith.evaluation.report import plots, wording
from fluxsmith.evaluation.report.parts import Part, Picture, Pictures
from fluxsmith.evaluation.samples import Samples
from fluxsmith.storage.files import write_text

FORMAT = "fluxsmith-comparison/1"
PROMPTS, EACH = 20, 10  # shown, and the pictures of each
TRAJECTORIES, FRAMES = 4, 11


class Evaluation(NamedTuple):
    """One model measured by several evaluators."""

    results: dict[str, Any]  # plain data, ready for JSON
    samples: Samples


Models = Mapping[str, Evaluation]  # by name; "" where there is one
Sections = Iterable[tuple[str, str, list[Part]]]  # anchor, heading and content


def write_report(
    folder: Path, *evaluations: Evaluation, comparisons: Sequence[dict[str, Any]] = ()
) -> Path:
    """Writes index.html and results.json into the folder, which it makes; says and gives the path.
    The same evaluations give the same bytes.

    Several models have different names. A comparison of two has a, b, metric, difference, interval,
    p, p_adjusted and verdict, which says what a is against b: equal, better or worse.
    """
    several = len(evaluations) > 1
    models = {each.results["name"] if several else "": each for each in evaluations}
    results = [each.results for each in evaluations]
    captions = list(dict.fromkeys(evaluations[0].samples.prompts))[:PROMPTS]
    followed = captions[:: max(1, len(captions) // TRAJECTORIES)][:TRAJECTORIES]
    page = _template("page.html.j2").render(
        models=dict(zip(models, results, strict=True)),
        figures={
            model: [f for name, r in each["results"].items() for f in EVALUATORS[name].figures(r)]
            for model, each in zip(models, results, strict=True)
        },
        samples=_samples(models, captions),
        trajectories=None if several else _trajectories(evaluations[0].samples, followed),
        sections=list(_sections(models)),
        comparisons=comparisons,
    )
    folder.mkdir(parents=True, exist_ok=True)
    together = {"format": FORMAT, "models": results, "comparisons": comparisons}
    write_json(folder / "results.json", together if several else results[0])
    path = folder / "index.html"
    write_text(path, page)
    Console().print(f"report  {path}", markup=False, highlight=False, soft_wrap=True)
    return path


def write_page(path: Path, title: str, facts: Sequence[str], sections: Sections) -> None:
    """Writes a page of sections, with some facts beneath its title."""
    text = _template("sections.html.j2").render(title=title, facts=facts, sections=list(sections))
    write_text(path, text)


def write_json(path: Path, data: Any) -> None:
    """With null where JSON has no number: NaN and infinity."""
    finite = json.loads(json.dumps(data), parse_constant=lambda _: None)
    write_text(path, json.dumps(finite, indent=2) + "\n")


def _template(name: str) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.loader = FileSystemLoader(Path(__file__).parent)
    environment.undefined = StrictUndefined
    environment.finalize = lambda text: wording.legible(text) if type(text) is str else text
    environment.globals |= vars(wording)
    environment.filters["yaml"] = partial(yaml.safe_dump, sort_keys=False, allow_unicode=True)
    return environment.get_template(name)


def _sections(models: Models) -> Sections:
    """Those of evaluators that have something to show."""
    for name, evaluator in EVALUATORS.items():
        found = {
            model: list(evaluator.section(results["results"][name], samples))
            for model, (results, samples) in models.items()
            if name in results["results"]
        }
        parts: list[Part] = []
        for i, part in enumerate(next(iter(found.values()), ())):
            if isinstance(part, plots.Chart):
                charts: dict[str, Any] = {model: each[i] for model, each in found.items()}
                parts += plots.drawn(plots.joined(charts))
            elif len(models) == 1:
                parts.append(part)
        if parts:
            yield name, evaluator.title, parts


def _samples(models: Models, captions: Sequence[str]) -> Pictures:
    """A row of pictures for each prompt and model, equal seeds beneath each other."""
    rows = []
    for caption in captions:
        for model, (_, samples) in models.items():
            name = ", ".join(filter(None, (wording.prompt_name(caption), model)))
            places = [i for i, prompt in enumerate(samples.prompts) if prompt == caption][:EACH]
            images = enumerate(samples.pictures[places], start=1)
            rows.append((name, [Picture.of(image, f"{name}, sample {i}") for i, image in images]))
    return Pictures(rows)


def _trajectories(samples: Samples, captions: Sequence[str]) -> Pictures:
    """One sample of each caption on its way from noise to data."""
    rows, frames = [], list[tuple[float, Tensor]]()
    for caption in captions:
        frames.clear()
        first = samples.prompts.index(caption)
        samples.draw([caption], first, lambda _, t, images: frames.append((t, images[0])))
        shown = sorted({round(i * (len(frames) - 1) / (FRAMES - 1)) for i in range(FRAMES)})
        pictures = [
            Picture.of(to_uint8(image.clamp(-1, 1)), f"{caption} at t = {t:.2f}", f"t {t:.2f}")
            for t, image in (frames[i] for i in shown)
        ]
        rows.append((wording.prompt_name(caption), pictures))
    return Pictures(rows)
