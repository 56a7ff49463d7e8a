"""`fluxsmith train`."""

from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.options import ConfigFile, Overrides


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="auto|PATH", help="Continue from the newest or a given checkpoint."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run in the output folder first.")
    ] = False,
    fork: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Start a new run from a checkpoint's averaged weights."),
    ] = None,
) -> None:
    """Train a model."""
    from fluxsmith.config import read_config
    from fluxsmith.device import pick_device
    from fluxsmith.evaluation.measurement import during_training
    from fluxsmith.kernels.memory import keep_freed_memory
    from fluxsmith.training.run import train as run

    settings = read_config(config, overrides or [])
    if pick_device(settings.device).type == "cpu":
        keep_freed_memory()
    code = run(settings, resume, overwrite, fork, evaluate=during_training(settings))
    raise typer.Exit(code)
