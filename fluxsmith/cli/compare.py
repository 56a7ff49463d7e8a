"""`fluxsmith compare`."""

from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.options import Device, Guidance, Report, Seed, Steps, Weights, this_command


def compare(
    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="A B [C ...]", help="Checkpoints or runs' folders.")
    ],
    num_samples: Annotated[int, typer.Option(min=2, help="Pictures of each model.")] = 1000,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    weights: Weights = "ema",
    report: Report = None,
    device: Device = "auto",
) -> None:
    """Compare models on the same prompts and noise, and say which differences are real."""
    from fluxsmith.evaluation.compare import compare as run

    run(
        checkpoints,
        num_samples=num_samples,
        steps=steps,
        guidance=guidance,
        seed=seed,
        weights=weights,
        device=device,
        command=this_command(),
        report=report,
    )
