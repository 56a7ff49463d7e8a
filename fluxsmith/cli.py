"""The command line. Commands import what they need when they run, so that --help is quick."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from fluxsmith.errors import UserError

app = typer.Typer(
    name="fluxsmith",
    help="Train, sample, measure and ship your own Flux.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at configs.", no_args_is_help=True)
app.add_typer(config_app, name="config")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML config.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings in place of the config's."),
]


Guidance = Annotated[float | None, typer.Option(help="Guidance scale; 1 is off.")]
Seed = Annotated[int, typer.Option(help="Equal seeds draw equal pictures.")]
Solver = Annotated[str | None, typer.Option(help="euler, heun or midpoint.")]
Steps = Annotated[int | None, typer.Option(help="Solver steps.")]
Weights = Annotated[str, typer.Option(help="ema or model.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures here.")]
Report = Annotated[Path | None, typer.Option(help="Write a page that shows it all here.")]
Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a run's folder.")
]


@app.command()
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
) -> None:
    """Train a model."""
    from fluxsmith.config import read_config
    from fluxsmith.evaluation.during_training import during_training
    from fluxsmith.training.run import train as run

    settings = read_config(config, overrides or [])
    code = run(settings, resume, overwrite, evaluate=during_training(settings))
    raise typer.Exit(code)


@app.command()
def sample(
    checkpoint: Checkpoint,
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
    weights: Weights = "ema",
    filmstrip: Annotated[
        bool, typer.Option("--filmstrip", help="Also the first picture's way from noise.")
    ] = False,
    gif: Annotated[bool, typer.Option("--gif", help="Also the way from noise, animated.")] = False,
    device: Device = "auto",
    config: Annotated[
        Path | None, typer.Option(help="Its sample section holds, and the model must be its own.")
    ] = None,
) -> None:
    """Draw pictures with a trained model."""
    from fluxsmith.checkpoint import newest
    from fluxsmith.config import read_config
    from fluxsmith.config.comparing import MODEL, check_same
    from fluxsmith.drawing import Request, default_folder, draw
    from fluxsmith.evaluation.cheapest import cheapest_setting
    from fluxsmith.pipeline import Pipeline

    whole = whole_number("--steps", steps) if steps not in (None, "auto") else None
    expected = read_config(config) if config else None
    path = newest(checkpoint)
    on = expected.device if expected and device == "auto" else device
    pipeline = Pipeline.from_checkpoint(path, device=on, weights=weights)
    if expected:
        check_same(pipeline.config, expected, MODEL, str(path))
        pipeline.config = pipeline.config.model_copy(update={"sample": expected.sample})
    settings = pipeline.config.sample
    if steps == "auto":
        settings = settings.model_copy(update=cheapest_setting(path, weights))
    elif whole is not None:
        settings = settings.model_copy(update={"steps": whole})
    request = Request(
        checkpoint=path,
        prompts=tuple(prompt or ()),
        num_samples=num_samples,
        steps=settings.steps,
        guidance=settings.guidance if guidance is None else guidance,
        solver=solver or settings.solver,
        seed=seed,
        weights=weights,
        filmstrip=filmstrip,
        gif=gif,
        device=device,
        config=config,
    )
    drawn = draw(pipeline, request, out or default_folder(pipeline))
    typer.echo(f"grid        {drawn.grid}")
    typer.echo(f"prompts     {drawn.prompts}")
    typer.echo(f"pictures    {drawn.pictures}/")
    if drawn.filmstrip:
        typer.echo(f"filmstrip   {drawn.filmstrip}")
    if drawn.gif:
        typer.echo(f"animation   {drawn.gif}")


@app.command()
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
    device: Device = "auto",
) -> None:
    """Measure a trained model against its data set."""
    from fluxsmith.checkpoint import newest
    from fluxsmith.evaluation.evaluators import named
    from fluxsmith.evaluation.run import evaluate as run
    from fluxsmith.evaluation.settings import Settings
    from fluxsmith.pipeline import Pipeline

    path = newest(checkpoint)
    pipeline = Pipeline.from_checkpoint(path, device=device, weights=weights)
    settings = Settings.like(
        pipeline.config.sample,
        num_samples=num_samples,
        steps=steps,
        guidance=guidance,
        solver=solver,
        seed=seed,
    )
    run(
        pipeline,
        settings,
        named(metrics),
        checkpoint=path,
        weights=weights,
        command=shlex.join(["fluxsmith", *sys.argv[1:]]),
        json_file=json_file,
        report=report,
    )


@app.command()
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
        command=shlex.join(["fluxsmith", *sys.argv[1:]]),
        report=report,
    )


@app.command()
def data(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Write a contact sheet here, a PNG.")] = None,
) -> None:
    """Look at a data set as the model will see it."""
    from fluxsmith.config import read_config
    from fluxsmith.survey import survey

    survey(read_config(config, overrides or []), out)


@config_app.command("show")
def config_show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print a config in full, with an explanation of each key."""
    from fluxsmith.config import read_config, show

    typer.echo(show(read_config(config, overrides or [])), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of a config, for editors."""
    from fluxsmith.config import json_schema

    typer.echo(json_schema(), nl=False)


def main(arguments: list[str] | None = None) -> None:
    """The entry point: a user's mistake is a line and exit code 2, Ctrl-C is 130."""
    try:
        sys.exit(app(arguments, standalone_mode=False))
    except UserError as error:
        _fail(str(error))
    except typer.Abort:
        typer.echo("stopped", err=True)
        sys.exit(130)
    except Exception as error:
        # Typer brings click along in some versions and depends on it in others, so its usage
        # errors are told by what they can do.
        if not hasattr(error, "format_message"):
            raise
        if message := error.format_message():
            _fail(f"{message} (see --help)")
        sys.exit(2)


def whole_number(option: str, text: str | None) -> int:
    try:
        return int(text or "")
    except ValueError:
        raise UserError(f"{option} {text}: must be a whole number or auto") from None


def _fail(message: str) -> NoReturn:
    for line in message.splitlines():
        typer.echo(f"error: {line}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
