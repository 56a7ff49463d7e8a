"""What `fluxsmith plan` prints and writes."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fluxsmith.config import RunConfig
from fluxsmith.planning.forecast import Forecast
from fluxsmith.planning.machine import Machine
from fluxsmith.storage.files import write_text
from fluxsmith.training.console import in_words


def show(
    config: RunConfig, machine: Machine, notes: list[str], found: Forecast, file: Path | None
) -> None:
    """A table of a forecast; its figures also go to a file, where there is one."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    txt, img = found.text_tokens, found.image_tokens
    console.print(
        f"{config.name}: {found.parameters:,} parameters, {txt:.3g} text and {img:,} image tokens "
        f"a picture, batches of {config.train.batch_size}"
    )
    each = f"{machine.devices} devices, each with " * (machine.devices > 1)
    console.print(f"{machine.name}: {each}{_gib(machine.memory)}")
    for note in notes:
        console.print(note)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(min_width=22)
    table.add_column(justify="right")
    for part, size in found.memory.items():
        table.add_row(part, _gib(size))
    table.add_row("in all, on each device", _gib(found.in_all))
    if found.saving:
        table.add_row("while a checkpoint is written", f"+ {_gib(found.saving)}")
    table.add_row("largest batch that fits", f"{found.largest_batch:,}")
    console.print(table)
    for name, value in _times(config, found).items():
        console.print(f"{name:12}{value}")
    if found.advice:
        console.print(f"does not fit: {found.advice}")
    if file is not None:
        figures = {"machine": asdict(machine), "notes": notes, **asdict(found)}
        write_text(file, json.dumps(figures, indent=2) + "\n")


def _times(config: RunConfig, found: Forecast) -> dict[str, str]:
    steps = config.train.steps
    rows = {"FLOPs": f"{found.flops:.3g} a step, {found.flops * steps:.3g} in {steps:,} steps"}
    if any(found.traffic.values()):
        within, between = (found.traffic[key] / 1e9 for key in ("within", "between"))
        rows["traffic"] = f"{within:,.1f} GB a step from each within a copy, {between:,.1f} between"
    if found.seconds is None:
        rows["time"] = f"not known: {found.how}"
        return rows
    rows["time"] = (
        f"{found.seconds:.3g} s a step, {in_words(found.seconds * steps)} in all ({found.how})"
    )
    if found.mfu is not None:
        rows["MFU"] = f"{found.mfu:.1%}"
    return rows


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
