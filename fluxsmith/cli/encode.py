"""`fluxsmith encode`."""

import typer

from fluxsmith.cli.options import ConfigFile, Overrides


def encode(config: ConfigFile, overrides: Overrides = None) -> None:
    """Encode a config's captions once, so that training need not load the text encoders."""
    from fluxsmith.config import read_config
    from fluxsmith.training.text import encode_captions

    for line in encode_captions(read_config(config, overrides or [])):
        typer.echo(line)
