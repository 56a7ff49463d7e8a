"""Arguments and options that several commands share, each explained once."""

import shlex
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fluxsmith.storage.shipped import is_shipped

if TYPE_CHECKING:
    from fluxsmith.parallel.ranks import Ranks
    from fluxsmith.pipeline import Pipeline

Resume = Annotated[
    str | None,
    typer.Option(metavar="auto|PATH", help="Continue from the newest or a given checkpoint."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete the run in the output folder first.")
]
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
Solver = Annotated[str | None, typer.Option(help="euler, heun, midpoint or adams2.")]
Steps = Annotated[int | None, typer.Option(help="Solver steps.")]
Weights = Annotated[str, typer.Option(help="ema or model.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Where files lie now: text.t5=FOLDER; any of a config."
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the network first: for thousands of pictures.")
]
CudaGraphs = Annotated[
    bool,
    typer.Option("--cuda-graphs", help="Capture the network as CUDA graphs: for small ones."),
]
Kernels = Annotated[
    Literal["auto", "off"],
    typer.Option(help="Our quicker code where the machine has it; off: plain PyTorch."),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures here.")]
Report = Annotated[Path | None, typer.Option(help="Write a page that shows it all here.")]


TYPED: ContextVar[Sequence[str]] = ContextVar("typed")  # what follows the program's name
RANKS: ContextVar["Ranks"] = ContextVar("ranks")  # set where this process is one of several


def this_command() -> str:
    """The command line as it was typed, to be repeated."""
    return shlex.join(["fluxsmith", *TYPED.get()])


def drawing_command(checkpoint: Path, found: Path) -> str:
    """The same for a drawing, wherever it is written to: with the checkpoint's file in place of its
    run's folder, and without --out."""
    from fluxsmith.storage import checkpoint as checkpoints

    typed = list(TYPED.get())
    if "--out" in typed:
        at = typed.index("--out")
        del typed[at : at + 2]
    kept = [word for word in typed if not word.startswith("--out=")]
    places = [i for i, word in enumerate(kept) if i and Path(word) == checkpoint]
    # Not the value of an option that is spelled alike, unless nothing else is.
    places.sort(key=lambda i: kept[i - 1].startswith("-"))
    if places and not is_shipped(found):  # whose folder is elsewhere on each machine
        kept[places[0]] = str(found)
    for i, word in enumerate(kept[1:], 1):
        run, colon, weight = (word, "", "") if Path(word).exists() else word.rpartition(":")
        if kept[i - 1] == "--lora" and run and checkpoints.find(Path(run)):
            kept[i] = f"{checkpoints.newest(Path(run))}{colon}{weight}"
    return shlex.join(["fluxsmith", *kept])


def ranks_on(device: str) -> "Ranks":
    """This process's ranks, each of which takes its own of the devices of this name."""
    from fluxsmith.device import pick_device
    from fluxsmith.parallel.ranks import ALONE

    ranks = RANKS.get(ALONE)
    ranks.device(pick_device(device))
    return ranks


def can_compile(pipeline: "Pipeline") -> bool:
    """Whether the network can be compiled for drawing; says why where it can't."""
    from fluxsmith.kernels.compiling import prepare_compiling

    if reason := prepare_compiling(pipeline.device):
        typer.echo(f"compile     not possible here, so drawing is slower: {reason}")
    return not reason
