"""`fluxsmith config show` and `schema`, and `fluxsmith data`."""

from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.options import ConfigFile, Overrides


def show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print a config in full, with an explanation of each key."""
    from fluxsmith.config import read_config
    from fluxsmith.config import show as shown

    typer.echo(shown(read_config(config, overrides or [])), nl=False)


def schema() -> None:
    """Print the JSON schema of a config, for editors."""
    from fluxsmith.config import json_schema

    typer.echo(json_schema(), nl=False)


def data(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Write a contact sheet here, a PNG.")] = None,
) -> None:
    """Look at a data set as the model will see it."""
    from fluxsmith.cli.dataset_sheet import dataset_sheet
    from fluxsmith.config import read_config

    dataset_sheet(read_config(config, overrides or []), out)
