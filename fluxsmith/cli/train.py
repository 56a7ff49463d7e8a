"""`fluxsmith train`."""

from functools import partial
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
    from fluxsmith.kernels.memory import give_back_freed_memory, keep_freed_memory
    from fluxsmith.parallel.ranks import ALONE
    from fluxsmith.planning.expectation import expected
    from fluxsmith.training.run import train

    if pick_device(config.device).type == "cpu":
        if config.parallel.shard == 1:
            keep_freed_memory()
        else:
            give_back_freed_memory()
    ranks = RANKS.get(ALONE)
    evaluate = partial(during_training, config, ranks)
    return train(config, resume, overwrite, fork, evaluate, ranks, expected)
