"""`fluxsmith data`."""

from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.options import ConfigFile, Overrides


def data(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Write a contact sheet here, a PNG.")] = None,
) -> None:
    """Look at a data set as the model will see it."""
    from fluxsmith.config import read_config
    from fluxsmith.survey import survey

    survey(read_config(config, overrides or []), out)
