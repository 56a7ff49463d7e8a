"""The command line. Commands import what they need when they run, so that --help is quick."""

import errno
import io
import json
import os
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
Where = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Where files lie now: text.t5=FOLDER."),
]
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
    fork: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Start a new run from a checkpoint's averaged weights."),
    ] = None,
) -> None:
    """Train a model."""
    from fluxsmith.config import read_config
    from fluxsmith.evaluation.during_training import during_training
    from fluxsmith.training.run import train as run

    settings = read_config(config, overrides or [])
    code = run(settings, resume, overwrite, fork, evaluate=during_training(settings))
    raise typer.Exit(code)


@app.command()
def encode(config: ConfigFile, overrides: Overrides = None) -> None:
    """Encode a config's captions once, so that training need not load the text encoders."""
    from fluxsmith.config import read_config
    from fluxsmith.training.text import encode_captions

    for line in encode_captions(read_config(config, overrides or [])):
        typer.echo(line)


@app.command()
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
    from fluxsmith.drawing import Request, default_folder, draw
    from fluxsmith.evaluation.cheapest import cheapest_setting
    from fluxsmith.interop.opening import open_pipeline
    from fluxsmith.starting import read_edit

    whole = whole_number("--steps", steps) if steps not in (None, "auto") else None
    expected = read_config(config) if config else None
    places = {"--autoencoder": autoencoder, "--clip": clip, "--t5": t5}
    keys = {"--autoencoder": "autoencoder.weights", "--clip": "text.clip", "--t5": "text.t5"}
    pipeline, path = open_pipeline(
        checkpoint,
        prompt or (),
        weights=weights,
        device=expected.device if expected and device == "auto" else device,
        dtype=dtype,
        offload=offload,
        overrides=[
            *(f"{keys[option]}={json.dumps(path)}" for option, path in places.items() if path),
            *(where or ()),
        ],
    )
    if expected:
        check_same(pipeline.config, expected, MODEL, str(path))
        pipeline.config = pipeline.config.model_copy(update={"sample": expected.sample})
    settings = pipeline.config.sample
    if steps == "auto":
        settings = settings.model_copy(update=cheapest_setting(path, weights))
    elif whole is not None:
        settings = settings.model_copy(update={"steps": whole})
    edit, size = read_edit(pipeline, init_image, strength, mask, picture_size(height, width))
    more: dict[str, object] = {
        **places,
        "--height": height,
        "--width": width,
        "--init-image": init_image,
    }
    more |= {"--strength": strength, "--mask": mask, "--dtype": dtype, "--batch-size": batch_size}
    more |= {"--offload": None if offload == "auto" else offload}
    request = Request(
        checkpoint=path,
        prompts=tuple(prompt or ()),
        num_samples=num_samples,
        steps=settings.steps,
        guidance=settings.guidance if guidance is None else guidance,
        solver=solver or settings.solver,
        seed=seed,
        weights=weights,
        size=size,
        batch_size=batch_size,
        edit=edit,
        options={option: str(value) for option, value in more.items() if value is not None},
        filmstrip=filmstrip,
        gif=gif,
        device=device,
        config=config,
        where=tuple(where or ()),
    )
    drawn = draw(pipeline, request, out or default_folder(pipeline, path))
    typer.echo(f"grid        {drawn.grid}")
    typer.echo(f"prompts     {drawn.prompts}")
    typer.echo(f"pictures    {drawn.pictures}/")
    if drawn.filmstrip:
        typer.echo(f"filmstrip   {drawn.filmstrip}")
    if drawn.gif:
        typer.echo(f"animation   {drawn.gif}")
    if (peak := peak_memory(pipeline.device)) is not None:
        typer.echo(f"peak memory {peak / 2**30:.2f} GiB")


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="A BFL file, a diffusers folder, a checkpoint of xdiffusion."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The checkpoint to write, *.pt.")],
    overrides: Overrides = None,
    config: Annotated[
        Path | None, typer.Option(help="What the model is; by default it is derived.")
    ] = None,
) -> None:
    """Turn released or foreign weights into a checkpoint."""
    from fluxsmith.interop.importing import import_model

    found = import_model(source, out, config, overrides or [])
    typer.echo(f"read        {found.kind}, {len(found.network)} tensors, from {found.origin}")
    typer.echo(f"checkpoint  {out}")


@app.command()
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A *.safetensors file, or a folder.")],
    form: Annotated[
        str, typer.Option("--format", metavar="bfl|diffusers", help="One file, or a folder.")
    ],
    weights: Weights = "ema",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16; as they are by default.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="What `evaluate --json` wrote, for the model card.")
    ] = None,
    samples: Annotated[bool, typer.Option(help="Draw a grid for the model card.")] = True,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="USER/MODEL", help="Upload it there.")
    ] = None,
) -> None:
    """Write a model for others: BFL's keys in one file, or a folder for diffusers."""
    from fluxsmith.interop.exporting import export as run

    for path in run(
        checkpoint, out, form, weights=weights, dtype=dtype, scores=scores, samples=samples
    ):
        typer.echo(f"wrote       {path}")
    if push_to_hub is not None:
        from fluxsmith.interop.hub import push

        typer.echo(f"uploaded    {push(out, push_to_hub)}")


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


@app.command()
def bench(
    config: ConfigFile,
    overrides: Overrides = None,
    against: Annotated[
        list[str] | None, typer.Option(help="diffusers or lesson; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Training steps measured of each.")] = 9,
    steps: Annotated[int, typer.Option(min=1, help="Euler steps of sampling.")] = 20,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures drawn at once.")] = 64,
    json_file: JsonFile = None,
    profile: Annotated[
        Path | None, typer.Option(help="Write a table and a trace of where the time goes here.")
    ] = None,
) -> None:
    """Measure how fast training and sampling are on this machine."""
    from fluxsmith.benchmark.profile import profile_step
    from fluxsmith.benchmark.run import OPPONENTS
    from fluxsmith.benchmark.run import bench as run
    from fluxsmith.config import read_config

    for name in against or []:
        if name not in OPPONENTS:
            raise UserError(f"--against {name}: must be one of {', '.join(OPPONENTS)}")
    settings = read_config(config, overrides or [])
    if profile is not None:
        profile_step(settings, profile)
        return
    run(
        settings,
        config,
        overrides or [],
        against or [],
        rounds=rounds,
        steps=steps,
        pictures=pictures,
        command=shlex.join(["fluxsmith", *sys.argv[1:]]),
        json_file=json_file,
    )


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
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what it can't encode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(app(arguments, standalone_mode=False))
    except UserError as error:
        _fail(*map(str, error.args))
    except BrokenPipeError:  # whoever read our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        _fail(f"{str(error.filename)[:40]}...: no file can have so long a name; check the path")
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


def _fail(*messages: str) -> NoReturn:
    """Prints a line each; what a terminal would act upon is shown as an escape."""
    for message in messages:
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        typer.echo(f"error: {line}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
