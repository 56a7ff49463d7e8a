"""Plots with all models in one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fluxsmith.evaluation.report import plots
from fluxsmith.evaluation.report.markup import Child, Markup, figure, tag
from fluxsmith.evaluation.report.measured import loss_points, quantile_points
from fluxsmith.evaluation.report.plots import Point
from fluxsmith.evaluation.report.sweep import quality_point
from fluxsmith.evaluation.report.wording import is_number

Found = Mapping[str, Any]
Models = Mapping[str, Found]  # results by the name that the page gives the model


def loss(models: Models) -> Child:
    lines: dict[str, list[Point]] = {}
    for name, results in models.items():
        grids = (found(results, "validation_loss").get("grids") or {}).values()
        points = [point for grid in grids for point in loss_points(grid)]
        if points:
            lines[name] = points
    return _plots([plots.loss_by_timestep("loss", lines)] if lines else [], "Bars: 95% intervals.")


def sweep(models: Models) -> Child:
    """Of each model the best that a number of evaluations can buy."""
    parts: list[Markup] = []
    choices: tuple[tuple[str, str, bool, Callable[..., Point]], ...] = (
        ("accuracy", "Prompt accuracy", True, max),
        ("frechet", "Fréchet distance", False, min),
    )
    for key, said, share, best in choices:
        lines: dict[str, list[Point]] = {}
        for name, results in models.items():
            rows = found(results, "sweep").get("rows") or []
            points = [point for row in rows if (point := quality_point(row, key)) is not None]
            for x in sorted({point.x for point in points}):
                affordable = [point for point in points if point.x <= x]
                found_best = best(affordable, key=lambda point: point.y)
                lines.setdefault(name, []).append(found_best._replace(x=x))
        if lines:
            heading = f"{said} against evaluations"
            parts.append(plots.quality(f"sweep-{key}", heading, lines, said, None, share))
    return _plots(parts, "Each model at its best setting of at most so many evaluations.")


def memorisation(models: Models) -> Child:
    lines: dict[str, list[Point]] = {}
    tests: list[Point] = []
    threshold = None
    for name, results in models.items():
        here = found(results, "memorisation")
        points = quantile_points(here.get("samples_quantiles"))
        if points:
            lines[name] = points
        tests = tests or quantile_points(here.get("test_quantiles"))
        threshold = threshold if is_number(threshold) else here.get("threshold")
    if lines and tests:
        lines["test images"] = tests
    return _plots([plots.distances("memorisation", lines, threshold)] if lines else [])


def _plots(drawn: Sequence[Markup], caption: str | None = None) -> Child:
    if not drawn:
        return None
    said = tag("p", caption) if caption else None
    return [said, tag("div", [figure(each) for each in drawn], class_="plots")]


def found(results: Found, evaluator: str) -> Found:
    return (results.get("results") or {}).get(evaluator) or {}
