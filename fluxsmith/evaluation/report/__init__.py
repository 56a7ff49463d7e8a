"""What an evaluation found as a page that one can mail: numbers, plots and pictures in one file."""

from fluxsmith.evaluation.report.parts import Part, Picture, Pictures, Table
from fluxsmith.evaluation.report.plots import Chart
from fluxsmith.evaluation.report.wording import interval, number, percent, prompt_name

__all__ = [
    "Chart", "Part", "Picture", "Pictures", "Table", "interval", "number", "percent", "prompt_name",
]  # fmt: skip
