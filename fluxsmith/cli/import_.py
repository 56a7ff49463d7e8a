"""`fluxsmith import`."""

from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.options import Overrides


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
