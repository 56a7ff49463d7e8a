"""`fluxsmith sample`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.options import (
    Compile,
    CudaGraphs,
    Device,
    Guidance,
    Kernels,
    Seed,
    Solver,
    Where,
    can_compile,
    drawing_command,
    ranks_on,
)
from fluxsmith.errors import UserError


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
    negative_prompt: Annotated[
        str, typer.Option(help="What guidance leads away from; nothing, by default.")
    ] = "",
    true_guidance: Annotated[
        float,
        typer.Option(help="Beside a scale that the network takes: at two evaluations a step."),
    ] = 1.0,
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
    init_image: Annotated[
        Path | None, typer.Option(help="A picture to start from, to fill or to edit.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of it is drawn anew: 1 all, 0.6 by default.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="White where it is drawn anew.")] = None,
    mask_grow: Annotated[int, typer.Option(min=0, help="Pixels that the white grows by.")] = 0,
    mask_blur: Annotated[
        float, typer.Option(min=0, help="Pixels that its edge is blurred by.")
    ] = 0,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WEIGHT]", help="A LoRA to add, in any format; repeatable."),
    ] = None,
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
    kernels: Kernels = "auto",
    device: Device = "auto",
    where: Where = None,
    config: Annotated[
        Path | None, typer.Option(help="Its sample section holds, and the model must be its own.")
    ] = None,
) -> None:
    """Draw pictures with a trained model, or with released weights and a config."""
    from fluxsmith.config import read_config
    from fluxsmith.config.comparing import MODEL, check_same
    from fluxsmith.device import peak_memory
    from fluxsmith.evaluation.evaluators.sweep import cheapest_setting
    from fluxsmith.interop.open_pipeline import open_pipeline
    from fluxsmith.pipeline import Pipeline
    from fluxsmith.sampling.edit_files import read_edit
    from fluxsmith.sampling.generate import Drawing, Sampler
    from fluxsmith.sampling.request import (
        choose_prompts,
        default_folder,
        not_learned,
        write_drawing,
    )

    try:
        number = None if steps in (None, "auto") else int(steps or "")
    except ValueError:
        raise UserError(f"--steps {steps}: must be a whole number or auto") from None
    if (height is None) != (width is None):  # the other would be a guess
        raise UserError("--height and --width go together; give both, or none for the config's")
    shape = None if height is None or width is None else (height, width)
    expected = read_config(config) if config else None
    places = {"autoencoder.weights": autoencoder, "text.clip": clip, "text.t5": t5}
    moved = [f"{key}={json.dumps(place)}" for key, place in places.items() if place]

    drawings: list[Drawing] = []
    ranks = ranks_on(device)

    def plan(pipeline: Pipeline, path: Path) -> Sequence[str]:
        """Every mistake in what was asked for comes up here, before anything large is loaded."""
        settings = pipeline.config.sample
        if expected:
            check_same(pipeline.config, expected, MODEL, str(path))
            settings = expected.sample
        if steps == "auto":
            settings = settings.model_copy(update=cheapest_setting(path, weights))
        edit, size = read_edit(
            pipeline,
            init_image,
            mask,
            shape,
            strength=strength,
            grow=mask_grow,
            blur=mask_blur,
        )
        drawing = Sampler(pipeline, settings).plan(
            choose_prompts(pipeline, prompt or (), num_samples, seed, settings.num_samples),
            steps=number,
            guidance=guidance,
            solver=solver,
            seed=seed,
            size=size,
            edit=edit,
            batch_size=batch_size,
            negative_prompt=negative_prompt,
            true_guidance=true_guidance,
        )
        asked = drawing.steps, drawing.solver, drawing.guidance
        if note := not_learned(pipeline.config, *asked):
            typer.echo(note, err=True)
        drawings.append(drawing)
        return [*drawing.prompts, drawing.negative_prompt]

    pipeline, path = open_pipeline(
        checkpoint,
        plan,
        weights=weights,
        device=expected.device if expected and device == "auto" else device,
        dtype=dtype,
        offload=offload,
        overrides=[*moved, *(where or ())],
        loras=lora or (),
    )
    sampler = Sampler(
        pipeline,
        expected.sample if expected else None,
        kernels=kernels,
        compile=compile_ and can_compile(pipeline),
        cuda_graphs=cuda_graphs,
    )
    command = drawing_command(checkpoint, path)
    folder = out or default_folder(pipeline, path)
    written = write_drawing(
        sampler, drawings[-1], folder, command, filmstrip=filmstrip, gif=gif, ranks=ranks
    )
    for what, file in written.items():
        typer.echo(f"{what:<11} {file}")
    if (peak := peak_memory(pipeline.device)) is not None:
        typer.echo(f"peak memory {peak / 2**30:.2f} GiB")
