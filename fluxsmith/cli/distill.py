"""`fluxsmith distill`."""

from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.options import Overrides, Overwrite, Resume
from fluxsmith.errors import UserError


def distill(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The teacher: a checkpoint or a run's folder.")
    ],
    overrides: Overrides = None,
    guidance: Annotated[
        bool, typer.Option("--guidance", help="The guidance scale becomes an input.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(help="Draw in so many steps, unguided: 1, 2, 4 or 8.")
    ] = None,
    match: Annotated[
        bool,
        typer.Option("--match", help="With --steps: a second run, for variety and sharp edges."),
    ] = False,
    resume: Resume = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a quicker student of a trained model."""
    from fluxsmith.cli.train import run_training
    from fluxsmith.distillation.students import student_config

    if guidance == (steps is not None):
        raise UserError("give --guidance or --steps N: what the student is to save")
    if match and steps is None:
        raise UserError("--match: is for students of few steps; give --steps N with it")
    config = student_config(run, steps, overrides or [], match)
    raise typer.Exit(run_training(config, resume, overwrite))
