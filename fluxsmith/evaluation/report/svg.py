"""Matplotlib's figures as SVG for the inside of a page: its colour of ink, its fonts, its width,
the same bytes for the same figure, and no identifier twice on a page."""

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fluxsmith.evaluation.report.markup import Markup, escaped, legible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito's colours, told apart by colour-blind readers; those that show on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

# A user's matplotlibrc must not change the page, so what matters is set here on the defaults.
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.color": "black",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


def drawn(
    name: str, title: str, size: tuple[float, float], draw: Callable[["Axes"], None]
) -> Markup:
    """What `draw` puts on a pair of axes, `size` in inches. The name tells plots of a page apart,
    the title is read to those who don't see it."""
    import matplotlib
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has it
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**SETTINGS, "svg.hashsalt": name})
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _for_page(file.getvalue(), name, title)


def _for_page(source: str, name: str, title: str) -> Markup:
    view = re.search(r'viewBox="([^"]+)"', source)
    assert view is not None
    body = source[source.index(">", source.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\n?", "", body, flags=re.DOTALL)  # texts, repeated as comments
    body = body.replace("#000000", "currentColor").replace("xlink:href", "href")
    for i, colour in enumerate(COLOURS):  # the page may have another for dark paper
        body = body.replace(colour, f"var(--plot-{i}, {colour})")
    body = re.sub(r"font: (?:[a-z]+ )*?([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r" ?font-family: [^;\"]*;?", "", body)  # the page's own, not matplotlib's
    body = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    label = escaped(title)
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view[1]}" role="img" '
        f'aria-label="{label}" fill="currentColor">\n<title>{label}</title>{legible(body)}'.rstrip()
    )
