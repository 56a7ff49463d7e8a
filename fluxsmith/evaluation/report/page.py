"""One model's report: a page that one can mail."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxsmith.evaluation.report import measured, pictures
from fluxsmith.evaluation.report.document import document, write_page
from fluxsmith.evaluation.report.gallery import Gallery
from fluxsmith.evaluation.report.headline import headline_table
from fluxsmith.evaluation.report.markup import Child, Markup, escaped, tag
from fluxsmith.evaluation.report.repeating import facts, repeating, title
from fluxsmith.evaluation.report.sweep import sweep
from fluxsmith.evaluation.report.wording import number

Section = tuple[str, str, Markup]  # name, title, content


def write_report(results: Mapping[str, Any], gallery: Gallery, folder: Path) -> Path:
    """Writes index.html and results.json into the folder, which it makes; gives the page's path.

    `results` is plain data in the format "fluxsmith-evaluation/1". Whatever it lacks, evaluators,
    intervals or settings, the page leaves out. The same input gives the same bytes.
    """
    said = tag("p", " · ".join(facts(results)), class_="facts")
    page = document(title(results), said, _sections(results, gallery))
    return write_page(folder, page, results)


def _sections(results: Mapping[str, Any], gallery: Gallery) -> list[Section]:
    """Those that have something to show, in the order in which one asks."""
    found = results.get("results") or {}

    def of(evaluator: str) -> Mapping[str, Any]:
        return found.get(evaluator) or {}

    def drawn(content: Sequence[Child], evaluator: str) -> Sequence[Child]:
        return content if of(evaluator) else []

    near = [*drawn(measured.memorisation(of("memorisation")), "memorisation")]
    pairs = pictures.neighbours(gallery)
    if pairs:
        near += [tag("h3", "The closest pairs"), tag("p", PAIRS), pairs]
    straight = [*measured.diversity(of("diversity")), *measured.straightness(of("straightness"))]
    return present(
        ("headline", "In numbers", _headline(results)),
        ("samples", "Samples by prompt", pictures.samples(gallery)),
        ("trajectories", "From noise to data", pictures.trajectories(gallery)),
        ("loss", "Loss by timestep", measured.loss(of("validation_loss"))),
        ("accuracy", "Prompt accuracy", measured.accuracy(of("prompt_accuracy"))),
        ("cost-and-quality", "Quality against steps and guidance", sweep(of("sweep"))),
        ("memorisation", "Memorisation", near),
        ("diversity", "Diversity and straightness", straight),
        ("likelihood", "Likelihood", measured.likelihood(of("likelihood"))),
        (
            "cost",
            "What it cost",
            measured.cost(results["seconds"]) if results.get("seconds") else [],
        ),
        ("repeat", "To repeat it", repeating(results)),
    )


PAIRS = "Left a sample, right the training image nearest to it, and their distance."


def present(*sections: tuple[str, str, Child]) -> list[Section]:
    """Those with content."""
    return [(name, said, escaped(content)) for name, said, content in sections if content]


def _headline(results: Mapping[str, Any]) -> Child:
    table = headline_table(results)
    if table is None:
        return None
    return [tag("div", table, class_="headline"), _counts(results.get("results") or {})]


def _counts(found: Mapping[str, Any]) -> Child:
    """How many samples and images stand behind the figures."""
    counts = (
        ("prompt_accuracy", "samples", "Prompt accuracy: {} samples."),
        ("feature_distance", "samples", "Feature distances: {} samples"),
        ("feature_distance", "reference_images", "against {} reference images."),
    )
    said = [
        form.format(number(found[evaluator][key]))
        for evaluator, key, form in counts
        if (found.get(evaluator) or {}).get(key) is not None
    ]
    return tag("p", " ".join(said), class_="facts") if said else None
