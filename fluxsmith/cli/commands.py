"""All commands, in the order in which --help lists them."""

import typer

from fluxsmith.cli.bench import bench
from fluxsmith.cli.config import data, schema, show
from fluxsmith.cli.encode import encode
from fluxsmith.cli.evaluate import compare, evaluate
from fluxsmith.cli.exchange import export, import_
from fluxsmith.cli.sample import sample
from fluxsmith.cli.study import study
from fluxsmith.cli.train import train

app = typer.Typer(
    name="fluxsmith",
    help="Train, sample, measure and ship your own Flux.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (train, encode, sample, import_, export, evaluate, compare, study, data, bench):
    app.command(command.__name__.rstrip("_"))(command)

config_app = typer.Typer(help="Look at configs.", no_args_is_help=True)
config_app.command()(show)
config_app.command()(schema)
app.add_typer(config_app, name="config")
