"""`fluxsmith train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluxsmith.cli.options import RANKS, ConfigFile, Overrides, Overwrite, Resume

if TYPE_CHECKING:
    from fluxsmith.config import RunConfig


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = None,
    overwrite: Overwrite = False,
    fork: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Start a new run from a checkpoint's averaged weights."),
    ] = None,
) -> None:
    """Train a model; under torchrun, on all its ranks (docs/scale.md)."""
    from fluxsmith.config import read_config

    settings = read_config(config, overrides or [])
    raise typer.Exit(run_training(settings, resume, overwrite, fork))


def run_training(
    config: "RunConfig", resume: str | None, overwrite: bool, fork: Path | None = None
) -> int:
    """Trains, with the ranks, memory and evaluations of the command line; returns the exit code."""
    from fluxsmith.device import pick_device
    from fluxsmith.evaluation.measurement import during_training
    from fluxsmith.kernels.memory import keep_freed_memory
    from fluxsmith.planning.expectation import expected
    from fluxsmith.training.run import train
    from fluxsmith.training.trainer import ALONE

    if pick_device(config.device).type == "cpu":
        keep_freed_memory()
    evaluate = during_training(config)
    return train(config, resume, overwrite, fork, evaluate, RANKS.get(ALONE), expected)
