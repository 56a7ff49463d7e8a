"""What a benchmark found, as tables for a terminal of 80 columns."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

NARROWEST = 18  # of the names, so that all tables line up


def tables(found: dict[str, Any], batch: int, pictures: int) -> Iterator[Table | Text]:
    """Of what `bench` found so far, for training steps of `batch` images and so many pictures."""
    parts = dict(found["seconds"])
    products = parts.pop("products", {})
    yield Text(f"{found['device']}, {found['threads']} threads, {found['dtype']}")
    for part, sides in parts.items():
        yield _times(part, sides, batch if part == "training" else pictures)
    step = parts.get("training", {}).get("ours")
    for name, product in products.items():
        rate = found["product_flops"] / product["median"]
        share = f"; ours reaches {found['step_flops'] / rate / step['median']:.0%}" if step else ""
        yield Text(f"matrix products by {name}: {rate / 1e9:,.0f} GFLOP/s{share}")
    if memory := found["peak_memory"]:
        rows = [
            [name, *(f"{n / 2**20:,.0f}" for n in each.values())] for name, each in memory.items()
        ]
        yield _sheet("memory at the peak", ["training, MiB", "drawing, MiB"], rows)
    waiting = {f"first step, compiling and all: {k}": v for k, v in found["first_step"].items()}
    waiting |= found["startup"]
    yield _sheet("waiting", ["s"], [[name, f"{value:.2f}"] for name, value in waiting.items()])


def _times(part: str, sides: dict[str, Any], images: int) -> Table:
    ours = sides["ours"]["median"]
    rows = [
        [
            name,
            _seconds(spread["median"]),
            f"{_seconds(spread['low'])} to {_seconds(spread['high'])}",
            f"{images / spread['median']:,.1f}",
            f"{spread['median'] / ours:.2f} times",
        ]
        for name, spread in sides.items()
    ]
    heading = ["s", "quartiles", "images/s", "beside ours"]
    return _sheet(f"{part}, {images} images", heading, rows)


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:,.1f}"


def _sheet(title: str, heading: list[str], rows: list[list[str]]) -> Table:
    sheet = Table("", *heading, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in sheet.columns:
        column.no_wrap, column.justify = True, "right" if column.header else "left"
    sheet.columns[0].min_width = NARROWEST
    for row in rows:
        sheet.add_row(*row)
    return sheet
