"""`fluxsmith bench`."""

from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.options import ConfigFile, JsonFile, Overrides, this_command
from fluxsmith.errors import UserError


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
) -> None:
    """Measure how fast training and sampling are on this machine."""
    from fluxsmith.benchmark.profile import profile_step
    from fluxsmith.benchmark.run import OPPONENTS
    from fluxsmith.benchmark.run import bench as run
    from fluxsmith.config import read_config

    for name in against or []:
        if name not in OPPONENTS:
            raise UserError(f"--against {name}: must be one of {', '.join(OPPONENTS)}")
    settings = read_config(config, overrides or [])
    if profile is not None:
        profile_step(settings, profile)
        return
    run(
        settings,
        config,
        overrides or [],
        against or [],
        rounds=rounds,
        steps=steps,
        pictures=pictures,
        command=this_command(),
        json_file=json_file,
    )
