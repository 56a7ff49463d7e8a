"""`fluxsmith evaluate`."""

from typing import Annotated

import typer

from fluxsmith.cli.options import (
    Checkpoint,
    Compile,
    CudaGraphs,
    Device,
    Guidance,
    JsonFile,
    Report,
    Seed,
    Solver,
    Steps,
    Weights,
    Where,
    compile_drawing,
    graph_drawing,
    this_command,
)


def evaluate(
    checkpoint: Checkpoint,
    num_samples: Annotated[int, typer.Option(min=2, help="Pictures to draw and judge.")] = 1000,
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
    compile_: Compile = False,
    cuda_graphs: CudaGraphs = False,
    device: Device = "auto",
    where: Where = None,
) -> None:
    """Measure a trained model against its data set."""
    from fluxsmith.checkpoint import newest
    from fluxsmith.evaluation.evaluators import named
    from fluxsmith.evaluation.run import evaluate as run
    from fluxsmith.evaluation.settings import Settings
    from fluxsmith.pipeline import Pipeline

    path = newest(checkpoint)
    pipeline = Pipeline.from_checkpoint(path, device=device, weights=weights, overrides=where or ())
    settings = Settings.like(
        pipeline.config.sample,
        num_samples=num_samples,
        steps=steps,
        guidance=guidance,
        solver=solver,
        seed=seed,
    )
    if compile_:
        compile_drawing(pipeline)
    if cuda_graphs:
        graph_drawing(pipeline)
    run(
        pipeline,
        settings,
        named(metrics),
        checkpoint=path,
        weights=weights,
        command=this_command(),
        json_file=json_file,
        report=report,
    )
