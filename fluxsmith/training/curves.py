"""The loss curve of a run as a PNG, and another one of what was seen at its looks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxsmith.training.averages import QUARTILES
from fluxsmith.training.recorder import read_metrics

# Okabe & Ito's colours, told apart by colour-blind readers.
COLOURS = ("#56B4E9", "#009E73", "#E69F00", "#CC79A7")


def plot_loss(metrics: Path, picture: Path, title: str) -> None:
    """Loss over steps, in all and by quartile of t, on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [record for record in read_metrics(metrics) if "loss" in record]
    figure = Figure(figsize=(7, 4.2), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i in range(QUARTILES):
        key = f"loss_q{i + 1}"
        points = [(r["step"], r[key]) for r in records if key in r]
        if not points:
            continue
        curve = zip(*points, strict=True)
        axes.plot(*curve, color=COLOURS[i], linewidth=0.9, label=_quartile(i))
    steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
    axes.plot(steps, losses, color="black", linewidth=1.5, label="all t")
    axes.set(title=title, xlabel="step", ylabel="loss", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    thin_out(figure)
    figure.savefig(picture)


def plot_signals(metrics: Path, picture: Path, title: str) -> bool:
    """Held-out loss, conditioning gap, loss against the best linear prediction's, and size of the
    updates; false where the run was not looked at."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_metrics(metrics)
    if not any("average_step" in record for record in records):
        return False
    figure = Figure(figsize=(9, 6.4), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    losses, gap, relative, updates = figure.subplots(2, 2).flat

    def draw(axes: Any, labels: Mapping[str, str], y: str) -> None:
        for key, label in labels.items():
            points = [(r["step"], r[key]) for r in records if key in r]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, linewidth=1.1)
        axes.set(xlabel="step", ylabel=y)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="x-small")

    draw(losses, {"loss": "in training", "loss_held_out": "held out"}, "loss")
    gaps = [r for r in records if "conditioning_gap" in r]
    steps, values = [r["step"] for r in gaps], [r["conditioning_gap"] for r in gaps]
    errors = [2 * r["conditioning_gap_stderr"] for r in gaps]
    gap.errorbar(steps, values, yerr=errors, marker=".", color=COLOURS[1], linewidth=1.1)
    gap.axhline(0, color="black", linewidth=0.8)
    gap.set(xlabel="step", ylabel="conditioning gap (bars: 2 s.e.)")
    gap.grid(alpha=0.3)
    quartiles = {f"relative_loss_q{i + 1}": _quartile(i) for i in range(QUARTILES)}
    draw(relative, quartiles, "loss / that of the best linear prediction")
    relative.axhline(1, color="black", linewidth=0.8)
    kinds = {key: key.partition("/")[2] for r in records for key in r if key.startswith("update/")}
    kinds.pop("update/blocks", None)
    draw(updates, kinds, "a step / the weights")
    for axes in (losses, relative, updates):
        axes.set_yscale("log")
    for axes in (losses, relative):
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    figure.suptitle(title)
    thin_out(figure)
    figure.savefig(picture)
    return True


def thin_out(figure: Any) -> None:
    """Hides labels of ticks that would lie over others, minor ones first."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        shown: list[Any] = []
        for label in (*axes.get_yticklabels(), *axes.get_yticklabels(minor=True)):
            box = label.get_window_extent()
            label.set_visible(not any(box.overlaps(other) for other in shown))
            shown += [box] if label.get_visible() else []


def _quartile(i: int) -> str:
    return f"{i / QUARTILES:g} ≤ t < {(i + 1) / QUARTILES:g}"
