"""`fluxsmith study`."""

from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.options import this_command


def study(
    declaration: Annotated[Path, typer.Argument(metavar="STUDY", help="A study's YAML file.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print runs, sizes and hours, and make nothing.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete the study's runs first.")
    ] = False,
    answer_only: Annotated[
        bool, typer.Option("--answer-only", help="Answer from what is measured by now.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Runs at the same time.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Where the page and study.json go; the study's folder.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the answer here in Markdown too, with its plots.")
    ] = None,
) -> None:
    """Make a declared experiment's runs, and say what they show."""
    from fluxsmith.studies.laboratory import study as run

    code = run(
        declaration,
        dry_run=dry_run,
        restart=restart,
        answer_only=answer_only,
        jobs=jobs,
        out=out,
        markdown=markdown,
        command=this_command(),
    )
    raise typer.Exit(code)
