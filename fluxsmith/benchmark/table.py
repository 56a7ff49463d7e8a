"""What a benchmark found, as tables for a terminal of 80 columns."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

NARROWEST = 18  # of the names, so that all tables line up


def tables(found: dict[str, Any], batch: int, pictures: int) -> Iterator[Table | Text]:
    """Of what `bench` returns, for training steps of `batch` images and so many pictures drawn."""
    about, peaks = found["machine"], found["machine"]["peaks"]
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in peaks.items())
    yield Text(
        f"{about['device']}, {about['threads']} threads, {about['dtype']}\n"
        f"matrix products: {rates}; memory {about['memory_bandwidth'] / 1e9:.1f} GB/s\n"
    )
    training = found["training"]
    yield _times(f"a training step, {batch} images", training, batch)
    shares = " and ".join(
        f"{found['operations'] / rate / training['ours']['median']:.0%} of {name}'s"
        for name, rate in peaks.items()
    )
    yield Text(f" ours multiplies at {shares} pace\n")
    for name, sides in found["sampling"].items():
        yield _times(f"drawing {pictures} pictures, {name}", sides, pictures)
    memory = found["peak_memory"]
    yield _sheet(
        "memory at the peak, above the start",
        ["", *(f"{work}, MiB" for work in memory)],
        [
            [name, *(f"{memory[work][name] / 2**20:,.0f}" for work in memory)]
            for name in memory["train"]
        ],
    )
    waiting = {f"first step, compiling and all: {k}": v for k, v in found["first_step"].items()}
    waiting |= found["startup"]
    rows = [[name, f"{seconds:.2f}"] for name, seconds in waiting.items()]
    yield _sheet("waiting", ["", "s"], rows)


def _times(title: str, sides: dict[str, Any], images: int) -> Table:
    ours = sides["ours"]["median"]
    rows = [
        [
            name,
            _seconds(spread["median"]),
            f"{_seconds(spread['low'])} to {_seconds(spread['high'])}",
            f"{images / spread['median']:,.1f}",
            "" if name == "ours" else f"{spread['median'] / ours:.2f} times",
        ]
        for name, spread in sides.items()
    ]
    return _sheet(title, ["", "s", "quartiles", "images/s", "beside ours"], rows)


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:,.1f}"


def _sheet(title: str, heading: list[str], rows: list[list[str]]) -> Table:
    sheet = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    first, *others = heading
    sheet.add_column(first, no_wrap=True, min_width=NARROWEST)
    for name in others:
        sheet.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        sheet.add_row(*row)
    return sheet
