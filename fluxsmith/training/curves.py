"""The loss curve of a run as a PNG."""

from pathlib import Path

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
        label = f"{i / QUARTILES:g} ≤ t < {(i + 1) / QUARTILES:g}"
        axes.plot(*zip(*points, strict=True), color=COLOURS[i], linewidth=0.9, label=label)
    steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
    axes.plot(steps, losses, color="black", linewidth=1.5, label="all t")
    axes.set(title=title, xlabel="step", ylabel="loss (mean squared error of v)", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    figure.savefig(picture)
