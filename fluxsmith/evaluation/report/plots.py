"""Plots by matplotlib, in the style of page.mplstyle."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fluxsmith.evaluation.report.parts import Part, Plot, Table, data_uri
from fluxsmith.evaluation.report.wording import interval, number, percent, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 5.2, 3.4  # inches
DRAWN = 40  # labels, the lowest; and points of a line that get a marker
NUMBERED = 32  # labels up to which a confusion matrix has a number in each cell
TIME = "t (0 data, 1 noise)"
STYLE = Path(__file__).with_name("page.mplstyle")


@dataclass(frozen=True)
class Chart:
    """Lines over numbers, or a row of points for each label. On the page of several models, their
    charts of one title become one."""

    title: str
    # By the name of a line, then by x or by label: a value, and the ends of its interval if any.
    series: Mapping[str, Mapping[Any, Sequence[float]]]
    x: str = ""
    y: str = ""
    caption: str = ""
    show: Callable[..., str] = number
    dress: Callable[["Axes"], Any] | None = None  # changes what is drawn
    numbers: bool = True  # in a table that opens on a click
    bands: bool = False  # show intervals of lines as bands


def joined(charts: Mapping[str, Chart]) -> Chart:
    """One chart of several models', by their names; a line that is the same in all stands once."""
    series: dict[str, Mapping[Any, Sequence[float]]] = {}
    for model, chart in charts.items():
        shared = [
            name
            for name, line in chart.series.items()
            if all(line == other.series.get(name) for other in charts.values())
        ]
        alone = len(chart.series) - len(shared) == 1
        for name, line in chart.series.items():
            own = model if alone else f"{model}, {name}"
            series[name if name in shared else own] = line
    return replace(next(iter(charts.values())), series=series)


def drawn(chart: Chart) -> list[Part]:
    """The plot, and the table of its numbers."""
    lines = list(chart.series.values())
    keys: list[Any] = list(dict.fromkeys(key for line in lines for key in line))
    labelled, shown = isinstance(keys[0], str), sorted(keys)
    if labelled:
        lowest = {key: min(line[key][0] for line in lines if key in line) for key in keys}
        least = set(sorted(keys, key=lowest.__getitem__)[:DRAWN])
        shown = [key for key in keys if key in least]

    def draw(axes: "Axes") -> None:
        for i, (name, line) in enumerate(chart.series.items()):
            here = [key for key in shown if key in line]
            if not here:
                continue
            values, *ends = np.array([line[key] for key in here], dtype=float).T
            # How far the ends of each interval lie below and above its value.
            bars = [abs(end - values) for end in ends] or None
            style: dict[str, Any] = {"marker": ""} if len(here) > DRAWN else {}
            style["label"] = shortened(name)
            if labelled:
                shift = (i + 1) / (len(lines) + 1) - 0.5
                places = [shown.index(key) + shift for key in here]
                axes.errorbar(values, places, xerr=bars, linestyle="", **style)
            elif chart.bands and ends:
                (drawn_line,) = axes.plot(here, values, **style)
                axes.fill_between(here, *ends, color=drawn_line.get_color(), alpha=0.2, lw=0)
            else:
                axes.errorbar(here, values, yerr=bars, **style)
        if labelled:
            axes.set_yticks(range(len(shown)), [shortened(key) for key in shown])
            axes.set_ylim(len(shown) - 0.4, -0.6)
        if chart.show is percent:
            axis = axes.xaxis if labelled else axes.yaxis
            axis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        if len(lines) > 1:
            short = max(map(len, chart.series)) <= 28
            axes.figure.legend(loc="outside lower center", ncols=2 if short else 1)
        axes.set(xlabel=chart.x, ylabel=chart.y)
        if chart.dress:
            chart.dress(axes)

    height = 1 + len(shown) * (0.14 + 0.06 * len(lines)) if labelled else HEIGHT
    plot = _svg(chart.title, draw, chart.caption, height)
    return [plot, _numbers(chart, keys)] if chart.numbers else [plot]


def confusion(title: str, matrix: list[list[int]], labels: list[str], caption: str) -> Plot:
    """Rows: what was asked for; columns: what the classifier saw."""
    from sklearn.metrics import ConfusionMatrixDisplay

    count, every = len(matrix), max(1, len(matrix) // NUMBERED)  # label that has room for its name

    def draw(axes: "Axes") -> None:
        display = ConfusionMatrixDisplay(np.array(matrix))
        display.plot(ax=axes, include_values=count <= NUMBERED, cmap="Blues", colorbar=False)
        names = [shortened(label, 12) for label in labels[::every]]
        axes.set_xticks(range(0, count, every), names, rotation=90 if count > 10 else 0)
        axes.set_yticks(range(0, count, every), names)
        axes.set(xlabel="seen", ylabel="asked for")
        axes.grid(False)

    return _svg(title, draw, caption, min(8.0, max(3.2, 0.36 * count + 1)))


def logarithmic(axes: Any) -> None:
    """The y axis, with plain numbers."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")


def _svg(title: str, draw: Callable[["Axes"], Any], caption: str, height: float) -> Plot:
    """What `draw` puts on a pair of axes."""
    from matplotlib import style
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with style.context(STYLE, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has it
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(file, format="svg", metadata={"Date": None})
    return Plot(title, data_uri("image/svg+xml", file.getvalue()), caption)


def _numbers(chart: Chart, keys: Sequence[Any]) -> Table:
    def cell(value: Any = None, *ends: float) -> str:
        return chart.show(value) + (f" ({interval(ends, chart.show, value)})" if ends else "")

    lines = chart.series.values()
    rows = [[str(key), *(cell(*line.get(key, ())) for line in lines)] for key in keys]
    head = [chart.x.split(" ")[0], *(name or "value" for name in chart.series)]
    return Table(f"The numbers: {chart.title}", head, rows, folded=True)
