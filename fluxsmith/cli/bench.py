"""`fluxsmith bench`."""

from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.options import ConfigFile, JsonFile, Overrides
from fluxsmith.errors import UserError

OTHERS = "diffusers", "lesson", "plain"


def bench(
    config: ConfigFile,
    overrides: Overrides = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="diffusers, lesson or plain (ours, not compiled); may be repeated."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Training steps measured of each.")] = 9,
    steps: Annotated[int, typer.Option(min=1, help="Euler steps of sampling.")] = 20,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures drawn at once.")] = 64,
    json_file: JsonFile = None,
    profile: Annotated[
        Path | None, typer.Option(help="Write a table and a trace of where the time goes here.")
    ] = None,
) -> int:
    """Measure how fast training and sampling are on this machine."""
    from fluxsmith.cli.benchmark.benchmark import bench as run
    from fluxsmith.cli.benchmark.benchmark import profile_step
    from fluxsmith.config import read_config

    for name in against or []:
        if name not in OTHERS:
            raise UserError(f"--against {name}: must be one of {', '.join(OTHERS)}")
    if profile is not None:
        profile_step(read_config(config, overrides or []), profile)
        return 0
    return run((config, overrides or []), against or [], rounds, steps, pictures, json_file)
