"""All commands, in the order in which --help lists them."""

import typer

from fluxsmith.cli.bench import bench
from fluxsmith.cli.config import data, schema, show
from fluxsmith.cli.distill import distill
from fluxsmith.cli.encode import encode
from fluxsmith.cli.evaluate import compare, evaluate
from fluxsmith.cli.exchange import export, import_
from fluxsmith.cli.lora_commands import convert, extract, merge
from fluxsmith.cli.lora_commands import show as show_lora
from fluxsmith.cli.plan import plan
from fluxsmith.cli.sample import sample
from fluxsmith.cli.serve import serve
from fluxsmith.cli.study import study
from fluxsmith.cli.train import train

app = typer.Typer(
    name="fluxsmith",
    help="Train, sample, measure and ship your own Flux.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    train,
    plan,
    distill,
    encode,
    sample,
    serve,
    import_,
    export,
    evaluate,
    compare,
    study,
    data,
    bench,
):
    app.command(command.__name__.rstrip("_"))(command)

config_app = typer.Typer(help="Look at configs.", no_args_is_help=True)
config_app.command()(show)
config_app.command()(schema)
app.add_typer(config_app, name="config")

lora_app = typer.Typer(help="Look at LoRAs, convert, merge and extract them.", no_args_is_help=True)
lora_app.command("show")(show_lora)
lora_app.command()(convert)
lora_app.command()(merge)
lora_app.command()(extract)
app.add_typer(lora_app, name="lora")
