"""All commands, in the order in which --help lists them."""

import typer

from fluxsmith.cli import config
from fluxsmith.cli.bench import bench
from fluxsmith.cli.compare import compare
from fluxsmith.cli.data import data
from fluxsmith.cli.encode import encode
from fluxsmith.cli.evaluate import evaluate
from fluxsmith.cli.export import export
from fluxsmith.cli.import_ import import_
from fluxsmith.cli.sample import sample
from fluxsmith.cli.train import train

app = typer.Typer(
    name="fluxsmith",
    help="Train, sample, measure and ship your own Flux.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train)
app.command()(encode)
app.command()(sample)
app.command("import")(import_)
app.command()(export)
app.command()(evaluate)
app.command()(compare)
app.command()(data)
app.command()(bench)

config_app = typer.Typer(help="Look at configs.", no_args_is_help=True)
config_app.command()(config.show)
config_app.command()(config.schema)
app.add_typer(config_app, name="config")
