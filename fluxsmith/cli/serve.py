"""`fluxsmith serve`."""

import threading
import webbrowser
from typing import Annotated

import typer

from fluxsmith.cli.options import Device


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Checkpoints, runs' folders, models that ship by name; those without any.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 7860,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    device: Device = "auto",
) -> None:
    """Open a page to draw with models, to watch them learn, and to look inside."""
    from fluxsmith.optional import optional

    for library in ("starlette", "uvicorn"):
        optional(library, "web", "fluxsmith serve")
    from fluxsmith.web.server import serve as run

    def started(address: str) -> None:
        typer.echo(f"page        {address}")
        typer.echo("Ctrl-C ends it")
        if browser:  # one in the terminal is waited for, and itself waits for the server
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    raise typer.Exit(run(models or [], port, device, started))
