"""The sections that show what was measured: each takes the results of its evaluator, or nothing,
and gives content for a section, or nothing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fluxsmith.evaluation.report import plots
from fluxsmith.evaluation.report.headline import Z
from fluxsmith.evaluation.report.markup import Child, Markup, figure, folded, table, tag
from fluxsmith.evaluation.report.plots import Point
from fluxsmith.evaluation.report.wording import (
    duration,
    interval,
    is_number,
    number,
    percent,
    plain,
    prompt_name,
)

Found = Mapping[str, Any]


def loss(found: Found) -> list[Child]:
    """The loss along t, with its numbers folded below."""
    grids = found.get("grids") or {}
    lines = {f"t = {name}": loss_points(grid) for name, grid in grids.items()}
    if not any(lines.values()):
        return []
    rows = [
        (t, grid, number(at.get("mean")), number(at.get("stderr"), at.get("mean")))
        for grid, values in grids.items()
        for t, at in (values.get("by_t") or {}).items()
    ]
    images = f", over {found['images']:,} held-out images" if is_number(found.get("images")) else ""
    caption = f"Mean squared error of the velocity{images}; bars: 95% intervals."
    means = [
        (f"all of t = {grid}", "", number(v.get("mean")), number(v.get("stderr"), v.get("mean")))
        for grid, v in grids.items()
    ]
    head = ["t", "grid", "loss", "standard error"]
    numbers = folded("The numbers", table("Loss by timestep", head, [*rows, *means]))
    return [plot(plots.loss_by_timestep("loss", lines), caption), numbers]


def loss_points(grid: Found) -> list[Point]:
    points = []
    for t, at in (grid.get("by_t") or {}).items():
        if is_number(at.get("mean")):
            margin = Z * at["stderr"] if is_number(at.get("stderr")) else 0.0
            points.append(Point(float(t), at["mean"], at["mean"] - margin, at["mean"] + margin))
    return points


def accuracy(found: Found) -> list[Child]:
    """The confusion matrix, and the accuracy by phrasing and by prompt."""
    parts: list[Child] = []
    if is_number(found.get("judge_test_accuracy")):
        right = percent(found["judge_test_accuracy"])
        parts.append(
            tag(
                "p",
                f"The judge itself is right on {right} of real test images: no figure here is "
                "more certain than that.",
            )
        )
    matrix = found.get("confusion")
    if matrix:
        labels = [str(label) for label in found.get("labels") or ()]
        if len(labels) != len(matrix):
            labels = [str(i) for i in range(len(matrix))]
        caption = ["Asked for (rows) and seen by the judge (columns). ", _mistakes(matrix, labels)]
        kind = "matrix large" if len(matrix) > 16 else "matrix"
        drawn = figure(plots.confusion("confusion", matrix, labels), caption, class_=kind)
        parts.append(drawn)
    phrasings = found.get("by_phrasing") or []
    names: list[list[Child]] = [[plain(row.get("phrasing"))] for row in phrasings]
    if phrasings:
        parts.append(_shares("By phrasing", ["phrasing"], names, phrasings))
    captions = found.get("by_caption") or {}
    names = [
        [prompt_name(str(caption)), str(row.get("label", ""))] for caption, row in captions.items()
    ]
    if captions:
        parts.append(_shares("By prompt", ["prompt", "label"], names, list(captions.values())))
    return parts


def _shares(
    caption: str, head: list[Child], names: Sequence[list[Child]], rows: Sequence[Found]
) -> Markup:
    """A table of shares, drawn from the ten percent below the least end of an interval to 1."""
    ends = [row.get("interval") or (row.get("accuracy"),) for row in rows]
    least = min((each[0] for each in ends if is_number(each[0])), default=0.0)
    start = min(0.9, math.floor(10 * least) / 10)
    cells = [
        [
            *name,
            percent(row.get("accuracy")),
            interval(row.get("interval"), percent, row.get("accuracy")),
            number(row.get("samples")),
            whisker(row.get("accuracy"), row.get("interval"), start),
        ]
        for name, row in zip(names, rows, strict=True)
    ]
    drawn = f"{start:.0%} to 100%"
    return table(caption, [*head, "accuracy", "95% interval", "samples", drawn], cells)


def whisker(value: Any, ends: Any, start: float = 0.0) -> Child:
    """A number and its interval between `start` and 1, drawn; the digits stand beside it."""
    if not is_number(value):
        return None
    low, high = ends if isinstance(ends, Sequence) and len(ends) == 2 else (value, value)
    scaled = ((each - start) / (1 - start) for each in (low, value, high))
    low, at, high = (100 * min(1.0, max(0.0, each)) for each in scaled)
    return Markup(
        '<svg class="whisker" viewBox="-2 -6 104 12" preserveAspectRatio="none" aria-hidden="true">'
        '<path d="M0 0H100" stroke="currentColor" stroke-opacity=".3"/>'
        f'<path d="M{low:.1f} 0H{high:.1f}" stroke="currentColor" stroke-opacity=".5" '
        'stroke-width="5"/>'
        f'<path d="M{at:.1f} -5V5" stroke="currentColor" stroke-width="1.6"/></svg>'
    )


def _mistakes(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """The most frequent confusions in words."""
    wrong = [
        (count, i, j)
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if i != j and count
    ]
    worst = sorted(wrong, key=lambda each: (-each[0], each[1:]))[:3]
    said = [
        f"{labels[i]} seen as {labels[j]} ({count} of {sum(matrix[i])})" for count, i, j in worst
    ]
    return f"Most often: {', '.join(said)}." if said else "No mistakes."


def memorisation(found: Found) -> list[Child]:
    """The distances of samples and of test images to the training set."""
    named = {"samples": "samples_quantiles", "test images": "test_quantiles"}
    lines = {name: quantile_points(found.get(key)) for name, key in named.items()}
    lines = {name: points for name, points in lines.items() if points}
    parts: list[Child] = [
        tag(
            "p",
            f"A near-copy is nearer to a training image than {number(found.get('threshold'))}: "
            f"{percent(found.get('near_copies'))} of samples are, and "
            f"{percent(found.get('test_near_copies'))} of test images. Where the samples' curve is "
            "left of that of test images, they are nearer to the training images than new images "
            "are: copies, or only very typical. Look at the pairs.",
        )
    ]
    if lines:
        threshold = found.get("threshold") if is_number(found.get("threshold")) else None
        parts.append(plot(plots.distances("memorisation", lines, threshold)))
        parts.append(folded("The numbers", _quantiles(lines)))
    return parts


def _quantiles(lines: Mapping[str, Sequence[Point]]) -> Markup:
    """The least, the greatest and some between."""
    rows = []
    for share in (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1):
        at = [points[round(share * (len(points) - 1))].x for points in lines.values()]
        rows.append([f"{share:.0%}", *map(number, at)])
    return table("The distance that a share of images is within", ["share", *lines], rows)


def quantile_points(values: Sequence[float] | None) -> list[Point]:
    """Evenly spaced quantiles, least and greatest included, as points (distance, share)."""
    values = [value for value in values or [] if is_number(value)]
    return [Point(value, i / max(1, len(values) - 1)) for i, value in enumerate(values)]


def diversity(found: Found) -> list[Child]:
    by_label = found.get("by_label") or {}
    rows = [(str(label), number(value), whisker(value, None)) for label, value in by_label.items()]
    if not rows:
        return []
    said = "How much the samples of a label differ, against how much its real images do."
    return [tag("p", said), table("Diversity by label", ["label", "diversity", "0 to 1"], rows)]


def straightness(found: Found) -> list[Child]:
    by_t = found.get("by_t") or {}
    points = [Point(float(t), value) for t, value in by_t.items() if is_number(value)]
    if not points:
        return []
    drawn = plots.by_time("straightness", "Bending by timestep", {"": points}, "bending")
    rows = [(str(t), number(value)) for t, value in by_t.items()]
    caption = "Where trajectories bend: 0 is straight."
    numbers = folded("The numbers", table("Bending by timestep", ["t", "bending"], rows))
    return [plot(drawn, caption), numbers]


def likelihood(found: Found) -> list[Child]:
    if not is_number(found.get("bits_per_dimension")):
        return []
    bits = found["bits_per_dimension"]
    said = (
        f"{number(bits)} ± {number(found.get('stderr'), bits)} bits per dimension (standard "
        f"error), over {number(found.get('images'))} held-out images, by the probability-flow ODE "
        "with Hutchinson's estimator of the divergence, whose own standard deviation for one image "
        f"is {number(found.get('probe_spread'), bits)}."
    )
    return [tag("p", said)]


def cost(seconds: Mapping[str, Any]) -> list[Child]:
    known = [each for each in seconds.values() if is_number(each)]
    rows = [(name.replace("_", " "), duration(each)) for name, each in seconds.items()]
    rows.append(("all", duration(sum(known))))
    return [table("Time that each evaluation took", ["evaluation", "time"], rows)]


def plot(drawn: Markup, caption: Child = None) -> Markup:
    return tag("div", figure(drawn, caption), class_="plots")
