"""`fluxsmith evaluate` and `fluxsmith compare`."""

from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.options import (
    Checkpoint,
    Compile,
    CudaGraphs,
    Device,
    Guidance,
    JsonFile,
    Kernels,
    Report,
    Seed,
    Solver,
    Steps,
    Weights,
    Where,
    can_compile,
    ranks_on,
    this_command,
)
from fluxsmith.errors import UserError


def evaluate(
    checkpoint: Checkpoint,
    num_samples: Annotated[int, typer.Option(min=2, help="Pictures to draw and measure.")] = 1000,
    steps: Steps = None,
    guidance: Guidance = None,
    solver: Solver = None,
    seed: Seed = 0,
    weights: Weights = "ema",
    metrics: Annotated[
        str | None, typer.Option(help="Comma-separated; `all` adds the sweep and the likelihood.")
    ] = None,
    json_file: JsonFile = None,
    report: Report = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Also compare with this one, as `compare` does."),
    ] = None,
    compile_: Compile = False,
    cuda_graphs: CudaGraphs = False,
    kernels: Kernels = "auto",
    device: Device = "auto",
    where: Where = None,
) -> None:
    """Measure a trained model against its data set."""
    if against is not None:
        own = {
            "--metrics": metrics,
            "--json": json_file,
            "--solver": solver,
            "--compile": compile_,
            "--cuda-graphs": cuda_graphs,
            "--kernels": kernels != "auto",
        }
        if given := [option for option, value in own.items() if value]:
            raise UserError(f"{given[0]}: --against compares all figures; leave one of them out")
        both = [checkpoint, against]
        compare(both, num_samples, steps, guidance, seed, weights, report, device, where)
        return
    from fluxsmith.evaluation.evaluators import named
    from fluxsmith.evaluation.measurement import evaluate as run
    from fluxsmith.evaluation.samples import Settings
    from fluxsmith.interop.open_pipeline import TextToImage
    from fluxsmith.sampling.generate import Sampler
    from fluxsmith.sampling.request import not_learned
    from fluxsmith.storage.checkpoint import newest

    path, ranks = newest(checkpoint), ranks_on(device)
    pipeline = TextToImage.from_checkpoint(path, device, weights, overrides=where or ())
    settings = Settings.like(
        pipeline.config.sample,
        num_samples=num_samples,
        steps=steps,
        guidance=guidance,
        solver=solver,
        seed=seed,
    )
    asked = settings.steps, settings.solver, settings.guidance
    if note := not_learned(pipeline.config, *asked):
        typer.echo(note, err=True)
    sampler = Sampler(
        pipeline,
        kernels=kernels,
        compile=compile_ and can_compile(pipeline),
        cuda_graphs=cuda_graphs,
    )
    run(
        sampler,
        settings,
        named(metrics),
        checkpoint=path,
        weights=weights,
        command=this_command(),
        json_file=json_file,
        report=report,
        ranks=ranks,
    )


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
    where: Where = None,
) -> None:
    """Compare models on the same prompts and noise, and say which differences are real."""
    from fluxsmith.evaluation.comparison import compare as run

    run(
        checkpoints,
        num_samples=num_samples,
        steps=steps,
        guidance=guidance,
        seed=seed,
        weights=weights,
        device=device,
        overrides=where or (),
        command=this_command(),
        report=report,
        ranks=ranks_on(device),
    )
