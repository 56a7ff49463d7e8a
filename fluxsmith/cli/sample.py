"""`fluxsmith sample`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.options import (
    Compile,
    CudaGraphs,
    Device,
    Guidance,
    Seed,
    Solver,
    compile_drawing,
    graph_drawing,
)
from fluxsmith.errors import UserError

# Options that say where a part of the model lies, and the keys of the config they stand for.
PLACES = {"--autoencoder": "autoencoder.weights", "--clip": "text.clip", "--t5": "text.t5"}


def sample(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A checkpoint, a run's folder, or a config."),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What to draw; may be repeated. Without: captions at random."),
    ] = None,
    num_samples: Annotated[int | None, typer.Option(help="Number of pictures.")] = None,
    steps: Annotated[
        str | None, typer.Option(help="Solver steps, or auto: the cheapest good setting.")
    ] = None,
    guidance: Guidance = None,
    solver: Solver = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures.")] = None,
    weights: Annotated[
        str, typer.Option(help="ema or model; with a config, the file of the network's weights.")
    ] = "ema",
    filmstrip: Annotated[
        bool, typer.Option("--filmstrip", help="Also the first picture's way from noise.")
    ] = False,
    gif: Annotated[bool, typer.Option("--gif", help="Also the way from noise, animated.")] = False,
    height: Annotated[int | None, typer.Option(help="Pixels; the config's by default.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; the config's by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures at once.")] = None,
    init_image: Annotated[Path | None, typer.Option(help="A picture to start from.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of it is drawn anew: 1 all, 0.6 by default.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="White where it is drawn anew.")] = None,
    autoencoder: Annotated[str | None, typer.Option(help="In place of the config's.")] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP's folder, likewise.")] = None,
    t5: Annotated[str | None, typer.Option(help="T5's folder, likewise.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the network: float32, bfloat16, float16.")
    ] = None,
    offload: Annotated[
        str, typer.Option(help="auto, none, or blocks: they visit the device one by one.")
    ] = "auto",
    compile_: Compile = False,
    cuda_graphs: CudaGraphs = False,
    device: Device = "auto",
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Where a checkpoint's files lie now: text.t5=FOLDER; any setting of a config.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Its sample section holds, and the model must be its own.")
    ] = None,
) -> None:
    """Draw pictures with a trained model, or with released weights and a config."""
    from fluxsmith.config import read_config
    from fluxsmith.config.comparing import MODEL, check_same
    from fluxsmith.device import peak_memory
    from fluxsmith.drawing import Request, check_request, default_folder, draw
    from fluxsmith.evaluation.cheapest import cheapest_setting
    from fluxsmith.interop.opening import open_pipeline
    from fluxsmith.pipeline import Pipeline
    from fluxsmith.starting import read_edit

    whole = whole_number("--steps", steps) if steps not in (None, "auto") else None
    expected = read_config(config) if config else None
    places = {"--autoencoder": autoencoder, "--clip": clip, "--t5": t5}
    moved = [f"{PLACES[name]}={json.dumps(place)}" for name, place in places.items() if place]
    given = {
        **places,
        "--height": height,
        "--width": width,
        "--init-image": init_image,
        "--strength": strength,
        "--mask": mask,
        "--dtype": dtype,
        "--batch-size": batch_size,
        "--offload": None if offload == "auto" else offload,
    }

    def requested(pipeline: Pipeline, path: Path) -> Request:
        if expected:
            check_same(pipeline.config, expected, MODEL, str(path))
            pipeline.config = pipeline.config.model_copy(update={"sample": expected.sample})
        settings = pipeline.config.sample
        if steps == "auto":
            settings = settings.model_copy(update=cheapest_setting(path, weights))
        edit, size = read_edit(pipeline, init_image, strength, mask, picture_size(height, width))
        return Request(
            checkpoint=path,
            prompts=tuple(prompt or ()),
            num_samples=num_samples,
            steps=settings.steps if whole is None else whole,
            guidance=settings.guidance if guidance is None else guidance,
            solver=solver or settings.solver,
            seed=seed,
            weights=weights,
            size=size,
            batch_size=batch_size,
            edit=edit,
            options={option: str(value) for option, value in given.items() if value is not None},
            filmstrip=filmstrip,
            gif=gif,
            device=device,
            config=config,
            where=tuple(where or ()),
            compiles=compile_,
            graphs=cuda_graphs,
        )

    pipeline, path = open_pipeline(
        checkpoint,
        lambda pipeline, path: check_request(pipeline, requested(pipeline, path)),
        weights=weights,
        device=expected.device if expected and device == "auto" else device,
        dtype=dtype,
        offload=offload,
        overrides=[*moved, *(where or ())],
    )
    if compile_:
        compile_drawing(pipeline)
    if cuda_graphs:
        graph_drawing(pipeline)
    drawn = draw(pipeline, requested(pipeline, path), out or default_folder(pipeline, path))
    typer.echo(f"grid        {drawn.grid}")
    typer.echo(f"prompts     {drawn.prompts}")
    typer.echo(f"pictures    {drawn.pictures}/")
    if drawn.filmstrip:
        typer.echo(f"filmstrip   {drawn.filmstrip}")
    if drawn.gif:
        typer.echo(f"animation   {drawn.gif}")
    if (peak := peak_memory(pipeline.device)) is not None:
        typer.echo(f"peak memory {peak / 2**30:.2f} GiB")


def picture_size(height: int | None, width: int | None) -> tuple[int, int] | None:
    """(height, width); one alone is a mistake, for the other would be a guess."""
    if height is None and width is None:
        return None
    if height is None or width is None:
        raise UserError("--height and --width go together; give both, or none for the config's")
    return height, width


def whole_number(option: str, text: str | None) -> int:
    try:
        return int(text or "")
    except ValueError:
        raise UserError(f"{option} {text}: must be a whole number or auto") from None
