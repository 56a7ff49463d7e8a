"""Arguments and options that several commands share, each explained once."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fluxsmith.pipeline import Pipeline

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML config.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings in place of the config's."),
]
Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a run's folder.")
]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; 1 is off.")]
Seed = Annotated[int, typer.Option(help="Equal seeds draw equal pictures.")]
Solver = Annotated[str | None, typer.Option(help="euler, heun or midpoint.")]
Steps = Annotated[int | None, typer.Option(help="Solver steps.")]
Weights = Annotated[str, typer.Option(help="ema or model.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Where = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Where files lie now: text.t5=FOLDER."),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the network first: for thousands of pictures.")
]
CudaGraphs = Annotated[
    bool,
    typer.Option("--cuda-graphs", help="Capture the network as CUDA graphs: for small ones."),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures here.")]
Report = Annotated[Path | None, typer.Option(help="Write a page that shows it all here.")]


def this_command() -> str:
    """The command line as it was typed, for what reports say of themselves."""
    return shlex.join(["fluxsmith", *sys.argv[1:]])


def compile_drawing(pipeline: "Pipeline") -> None:
    """Has the pipeline draw with compiled blocks, or says why it can't."""
    from fluxsmith.compiling import prepare_compiling

    _check_resident(pipeline, "--compile")
    if reason := prepare_compiling(pipeline.device):
        typer.echo(f"compile     not possible here, so drawing is slower: {reason}")
        return
    pipeline.compiles = True


def graph_drawing(pipeline: "Pipeline") -> None:
    """Has the pipeline draw by CUDA graphs; a UserError where there can be none."""
    from fluxsmith.errors import UserError
    from fluxsmith.graphs import CudaCapture
    from fluxsmith.pipeline.graphed import GraphedVelocity

    if pipeline.device.type != "cuda":
        raise UserError(
            f"--cuda-graphs needs a CUDA GPU, and this is {pipeline.device}; leave it out"
        )
    _check_resident(pipeline, "--cuda-graphs")
    pipeline.graphed = GraphedVelocity(pipeline, CudaCapture(pipeline.device))


def _check_resident(pipeline: "Pipeline", option: str) -> None:
    from fluxsmith.errors import UserError

    if any(block._forward_pre_hooks for block in pipeline.network.blocks):
        raise UserError(f"{option} needs blocks that stay on the device; add --offload none")
