"""`fluxsmith lora show`, `convert`, `merge` and `extract`."""

from pathlib import Path
from typing import Annotated

import typer

Lora = Annotated[
    Path, typer.Argument(metavar="LORA", help="A LoRA file of any program, or a LoRA run.")
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, *.safetensors.")]
Format = Annotated[
    str, typer.Option("--format", help="diffusers, kohya, comfyui, bfl, x-flux or onetrainer.")
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16; as it is by default.")]
WithoutText = Annotated[
    bool, typer.Option("--without-text", help="Leave out what changes text encoders.")
]


def show(lora: Lora) -> None:
    """Show what a LoRA is: format, ranks, trigger words, how much it changes each block."""
    from rich.console import Console
    from rich.table import Table

    from fluxsmith.interop.lora_files import read_lora
    from fluxsmith.interop.lora_tools import describe

    found = read_lora(lora, without_text=True)
    table = Table(title=found.origin, show_header=False)
    for key, value in describe(found):
        table.add_row(key, value)
    Console(markup=False).print(table)


def convert(
    lora: Lora,
    out: Out,
    form: Format = "diffusers",
    dtype: Dtype = None,
    without_text: WithoutText = False,
    trigger: Annotated[str | None, typer.Option(help="Trigger words, for its metadata.")] = None,
) -> None:
    """Write a LoRA in another program's format, or a LoRA run as a file."""
    from fluxsmith.device import named_dtype
    from fluxsmith.interop.lora_files import read_lora, write_lora
    from fluxsmith.storage.files import refuse_existing

    refuse_existing(out)
    found = read_lora(lora, without_text=without_text)
    metadata = dict(found.metadata)
    if trigger is not None:
        metadata["modelspec.trigger_phrase"] = trigger
    write_lora(out, found.changes, form, metadata, named_dtype(dtype))
    if found.left_out:
        typer.echo(f"left out    {len(found.left_out)} tensors of text encoders")
    typer.echo(f"wrote       {out}")


def merge(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="What the LoRA changes, or a LoRA run.")
    ],
    out: Out,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WEIGHT]", help="A LoRA to merge; may be repeated."),
    ] = None,
    dtype: Dtype = None,
) -> None:
    """Merge LoRAs into a model's weights, in float32 and then in their dtype."""
    from fluxsmith.device import named_dtype
    from fluxsmith.interop.lora_tools import merge as run

    for path in run(model, lora or [], out, named_dtype(dtype)):
        typer.echo(f"wrote       {path}")


def extract(
    before: Annotated[Path, typer.Argument(metavar="A", help="A model, in any form.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The same one, trained further.")],
    out: Out,
    rank: Annotated[int, typer.Option(min=1, help="Of the change to each layer.")] = 16,
    form: Format = "diffusers",
    dtype: Dtype = None,
) -> None:
    """Find the LoRA that turns model A into model B."""
    from fluxsmith.device import named_dtype
    from fluxsmith.interop.lora_tools import extract as run

    held = run(before, after, out, rank, form, named_dtype(dtype))
    typer.echo(f"holds       {held:.2%} of what differs (squared norm), at rank {rank}")
    typer.echo(f"wrote       {out}")
