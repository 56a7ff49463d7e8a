"""The peak memory of import and export, beside the size of the model's file.

    python benchmarks/exchange_memory.py FOLDER [--depth 2]

makes a model of FLUX.1's width with DEPTH dual and twice as many single blocks in bfloat16 (5.2 GB
of files for depth 2, in FOLDER, which is deleted afterwards), and runs each command in a process of
its own. What a process takes for a tiny model is measured first, and taken off.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from fluxsmith.config import read_config
from fluxsmith.interop.exporting import export
from fluxsmith.interop.importing import contents
from fluxsmith.interop.read_weights import Weights
from fluxsmith.pipeline import Pipeline
from fluxsmith.storage import checkpoint as checkpoints

SIZES = (
    "{hidden_size: %d, num_heads: %d, axes_dim: [16, 56, 56], depth: %d, depth_single_blocks: %d}"
)


# A command, and then what it took: the system's own count also has that of who started it.
RUN = """
import sys, torch
from fluxsmith.cli import main
from fluxsmith.device import peak_memory
try:
    main(sys.argv[1:])
except SystemExit as stopped:
    assert not stopped.code
print(peak_memory(torch.device("cpu")))
"""


@torch.no_grad()
def make(folder: Path, hidden: int, depth: int) -> None:
    """A checkpoint, and its exports in both forms."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("data: {source: digits}\ntext: {width: 768}\n")
    sizes = SIZES % (hidden, hidden // 128, depth, 2 * depth)
    pipeline = Pipeline.build(read_config(folder / "config.yaml", [f"model={sizes}"]), empty=True)
    network = {
        name: torch.empty(p.shape, dtype=torch.bfloat16).normal_(std=0.02)
        for name, p in pipeline.network.state_dict().items()
    }
    text = pipeline.text.state_dict()  # type: ignore[attr-defined]
    weights = Weights("fluxsmith", "random", network, text=text)
    checkpoints.save(folder / "model.pt", contents(weights, pipeline.config))
    export(folder / "model.pt", folder / "bfl.safetensors", "bfl")
    export(folder / "model.pt", folder / "diffusers", "diffusers", samples=False)


def peak(*arguments: object) -> int:
    """The most bytes that were resident while this command ran, mapped files included."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)], stdout=subprocess.PIPE, check=True
    )
    return int(done.stdout.split()[-1])


def measure(folder: Path) -> dict[str, int]:
    """The peak of each command."""
    checkpoint, to = folder / "model.pt", folder / "out"
    options = ("--format", "diffusers", "--no-samples")
    commands: dict[str, tuple[object, ...]] = {
        "import BFL's file": ("import", folder / "bfl.safetensors", f"{to}.pt"),
        "import diffusers' folder": ("import", folder / "diffusers", f"{to}.pt"),
        "export bfl": ("export", checkpoint, f"{to}.safetensors", "--format", "bfl"),
        "export diffusers": ("export", checkpoint, to, *options),
        "export diffusers in float16": ("export", checkpoint, to, *options, "--dtype", "float16"),
        "export diffusers in shards": (
            "export",
            checkpoint,
            to,
            *options,
            "--max-shard-size",
            "1GB",
        ),
    }
    found = {}
    for what, command in commands.items():
        found[what] = peak(*command)
        for path in folder.glob("out*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--depth", type=int, default=2)
    options = parser.parse_args()
    try:
        make(options.folder / "tiny", 128, 1)
        make(options.folder / "large", 3072, options.depth)
        small, large = (measure(options.folder / name) for name in ("tiny", "large"))
        size = (options.folder / "large" / "bfl.safetensors").stat().st_size
        print(f"the file has {size / 2**30:.2f} GiB")
        for what, most in large.items():
            own = most - small[what]
            print(f"{what:<28} {own / 2**30:.2f} GiB, {own / size:.3f} of the file's size")
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
