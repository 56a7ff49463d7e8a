"""The plots of a report. Lines differ in colour, marker and dashes, so that no reader depends on
one of them."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fluxsmith.evaluation.report.markup import Markup, legible
from fluxsmith.evaluation.report.svg import COLOURS, drawn
from fluxsmith.evaluation.report.wording import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "os^DvPX"
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
SIZE = (5.2, 3.4)  # inches; a page as narrow as a phone shows its text at full size
SHADE = (0.0, 0.42, 0.67)  # of a confusion matrix
NUMBERED = 32  # labels up to which a confusion matrix has a number in each cell


class Point(NamedTuple):
    x: float
    y: float
    low: float | None = None  # ends of the error bar
    high: float | None = None


Lines = Mapping[str, Sequence[Point]]  # by name


def loss_by_timestep(name: str, lines: Lines) -> Markup:
    """Logarithmic if need be: at t = 0 the loss is often ten times that elsewhere."""

    def draw(axes: "Axes") -> None:
        handles = _lines(axes, lines)
        _logarithmic_if_wide(axes, lines, 4)
        axes.set(xlabel="t (0 data, 1 noise)", ylabel="loss", xlim=(-0.03, 1.03))
        _legend(axes, handles)

    return drawn(name, "Loss by timestep", SIZE, draw)


def quality(
    name: str, title: str, lines: Lines, ylabel: str, chosen: Point | None, share: bool
) -> Markup:
    """Quality against evaluations of the network, both as given; `chosen` gets a ring."""

    def draw(axes: "Axes") -> None:
        handles = _lines(axes, lines)
        _powers_of_two(axes, [point.x for points in lines.values() for point in points])
        if share:
            axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g}%")
        else:
            _logarithmic_if_wide(axes, lines, 20)
        if chosen is not None:
            ring: dict[str, Any] = {
                "marker": "o",
                "markersize": 13,
                "fillstyle": "none",
                "color": "black",
            }
            handles += axes.plot(
                [chosen.x], [chosen.y], linestyle="", label="cheapest", zorder=5, **ring
            )
        axes.set(xlabel="evaluations of the network", ylabel=ylabel)
        _legend(axes, handles)

    return drawn(name, title, SIZE, draw)


def by_time(name: str, title: str, lines: Lines, ylabel: str) -> Markup:
    """Something that is at least 0, along t."""

    def draw(axes: "Axes") -> None:
        handles = _lines(axes, lines)
        axes.set(xlabel="t (0 data, 1 noise)", ylabel=ylabel, xlim=(-0.03, 1.03))
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]) if _values(lines) else None)
        _legend(axes, handles)

    return drawn(name, title, SIZE, draw)


def distances(name: str, lines: Lines, threshold: float | None) -> Markup:
    """The share of images (y) that are nearer than a distance (x), with the line of near-copies."""

    def draw(axes: "Axes") -> None:
        handles = _lines(axes, lines, markers=False)
        if threshold is not None:
            axes.axvline(threshold, color="black", linewidth=0.8, linestyle=(0, (1, 2)))
            axes.annotate(
                "near-copy",
                (threshold, 0.97),
                xytext=(-3, 0),
                textcoords="offset points",
                ha="right",
                va="top",
                rotation=90,
                fontsize=8.5,
            )
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g}%")
        axes.set(xlabel="distance to the nearest training image", ylabel="images nearer than that")
        _legend(axes, handles)

    return drawn(name, "Distance to the nearest training image", SIZE, draw)


def confusion(name: str, matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Markup:
    """Rows: what was asked for; columns: what the judge saw. Colour: the share of the row."""
    count = len(matrix)
    side = min(8.0, max(3.2, 0.42 * count + 1))
    every = max(1, count // NUMBERED)  # label that has room for its name

    def draw(axes: "Axes") -> None:
        _cells(axes, matrix)
        axes.grid(False)
        axes.set(xlim=(0, count), ylim=(count, 0), aspect="equal")
        middles = [i + 0.5 for i in range(0, count, every)]
        names = [_name(label, 12) for label in labels[::every]]
        turned = max(map(len, names), default=0) > 4 or count > NUMBERED
        axes.set_xticks(middles, names, rotation=90 if turned else 0)
        axes.set_yticks(middles, names)
        axes.set(xlabel="seen", ylabel="asked for")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set(visible=True, linewidth=0.6)

    return drawn(name, "Confusion matrix", (side, side), draw)


def _cells(axes: "Axes", matrix: Sequence[Sequence[int]]) -> None:
    """Shades that leave ink legible and let rare mistakes show; as a picture if there are many."""
    import numpy as np

    counts = np.asarray(matrix, dtype=float)  # (asked for, seen)
    shade = np.empty((*counts.shape, 4))
    shade[..., :3] = SHADE
    shade[..., 3] = 0.75 * np.sqrt(counts / np.maximum(1, counts.sum(1, keepdims=True)))
    size = len(counts)
    if size > NUMBERED:
        axes.imshow(shade, interpolation="nearest", extent=(0, size, size, 0))
        return
    for i, j in np.argwhere(counts > 0).tolist():
        axes.fill([j, j + 1, j + 1, j], [i, i, i + 1, i + 1], color=shade[i, j], linewidth=0)
        said = f"{matrix[i][j]}"
        axes.text(j + 0.5, i + 0.5, said, ha="center", va="center", fontsize=8)


def _lines(axes: "Axes", lines: Lines, markers: bool = True) -> list[Any]:
    """Draws them and gives what a legend needs of each."""
    handles: list[Any] = []
    for i, (name, unordered) in enumerate(lines.items()):
        points = sorted(unordered, key=lambda point: point.x)
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": DASHES[i % len(DASHES)],
            "marker": MARKERS[i % len(MARKERS)] if markers else "",
            "label": _name(name),
        }
        xs, ys = [p.x for p in points], [p.y for p in points]
        if any(p.low is not None and p.high is not None for p in points):
            below = [max(0.0, p.y - p.low) if p.low is not None else 0.0 for p in points]
            above = [max(0.0, p.high - p.y) if p.high is not None else 0.0 for p in points]
            bars = axes.errorbar(xs, ys, [below, above], capsize=2, elinewidth=0.9, **style)
            handles.append(bars)
        else:
            handles += axes.plot(xs, ys, **style)
    return handles


def _legend(axes: "Axes", handles: Sequence[Any]) -> None:
    """Below the axes, in the order given; none for a single line."""
    if len(handles) > 1:
        short = max(len(handle.get_label()) for handle in handles) <= 28
        axes.figure.legend(handles=handles, loc="outside lower center", ncols=2 if short else 1)


def _name(text: str, most: int = 40) -> str:
    """Matplotlib hides labels that begin with an underscore, hence the word joiner before it."""
    text = legible(shortened(text, most))
    return "\u2060" + text if text.startswith("_") else text


def _values(lines: Lines) -> list[float]:
    return [point.y for points in lines.values() for point in points]


def _powers_of_two(axes: "Axes", xs: Sequence[float]) -> None:
    """A logarithmic axis with a plain number at each power of two in range."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    if xs and min(xs) > 0:
        ends = math.floor(math.log2(min(xs))), math.ceil(math.log2(max(xs)))
        axes.set_xticks([2.0**i for i in range(ends[0], ends[1] + 1)])


def _logarithmic_if_wide(axes: "Axes", lines: Lines, ratio: float) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    values = _values(lines)
    if values and min(values) > 0 and max(values) > ratio * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
