"""`fluxsmith config show` and `fluxsmith config schema`."""

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
