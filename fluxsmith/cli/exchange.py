"""`fluxsmith export` and `fluxsmith import`: models of and for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.options import Checkpoint, Overrides, Weights, Where


def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A *.safetensors file, or a folder.")],
    form: Annotated[
        str,
        typer.Option("--format", metavar="bfl|diffusers|fluxsmith", help="One file, or a folder."),
    ],
    weights: Weights = "ema",
    where: Where = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16, float16, float8_e4m3fn; as they are by default."),
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(metavar="5GB", help="Divide a larger transformer into shards.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="What `evaluate --json` wrote, for the model card.")
    ] = None,
    samples: Annotated[bool, typer.Option(help="Draw a grid for the model card.")] = True,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="USER/MODEL", help="Upload it there.")
    ] = None,
) -> None:
    """Write a model for others: BFL's keys in one file, a folder for diffusers, or a small folder
    for fluxsmith itself."""
    from fluxsmith.interop.exporting import export as run
    from fluxsmith.interop.hub import check_upload, upload

    if push_to_hub is not None:
        check_upload(push_to_hub)
    written = run(
        checkpoint,
        out,
        form,
        weights=weights,
        overrides=where or (),
        dtype=dtype,
        scores=scores,
        samples=samples,
        max_shard_size=max_shard_size,
    )
    for path in written:
        typer.echo(f"wrote       {path}")
    if push_to_hub is not None:
        typer.echo(f"uploaded    {upload(push_to_hub, written)}")


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="A BFL file, a diffusers folder, a hub id, another's checkpoint."
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
