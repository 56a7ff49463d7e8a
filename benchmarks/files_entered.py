"""How many of our files a training step and a drawing enter, and how often calls pass between them.

    python benchmarks/files_entered.py
    python benchmarks/files_entered.py configs/image/mnist/small.yaml

A pass is a call from one file to another, be it through a library. Counted is the second step (the
first makes what all others use), and a drawing of two Euler steps with guidance.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import fluxsmith
from fluxsmith.config import RunConfig, read_config
from fluxsmith.sampling.generate import Sampler
from fluxsmith.training.run import build_trainer

ROOT = Path(fluxsmith.__file__).parent
CONFIG = Path(__file__).parents[1] / "configs" / "image" / "digits" / "tiny.yaml"
PLAIN = ("device=cpu", "train.kernels=off", "train.compile=false")


def entered(work: Callable[[], object]) -> tuple[set[str], Counter[tuple[str, str]]]:
    """The files that a piece of work enters, and its calls from a file (first) to another."""
    files, passes = set[str](), Counter[tuple[str, str]]()

    def ours(frame: FrameType) -> str | None:
        path = Path(frame.f_code.co_filename)
        return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else None

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or (file := ours(frame)) is None:
            return
        files.add(file)
        above = frame.f_back
        while above is not None and ours(above) is None:
            above = above.f_back
        caller = above and ours(above)
        if caller and caller != file:
            passes[caller, file] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return files, passes


def counted(config: RunConfig) -> dict[str, tuple[set[str], Counter[tuple[str, str]]]]:
    """What a training step and a drawing enter, by name."""
    trainer = build_trainer(config, torch.device("cpu"))
    trainer.train_step()
    training = entered(trainer.train_step)
    sampler = Sampler(trainer.pipeline.eval(), kernels=config.train.kernels)

    def draw() -> None:
        sampler.generate(["three"], steps=2, guidance=2, solver="euler")

    draw()
    return {"training step": training, "drawing of two steps": entered(draw)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default=CONFIG)
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_args()
    print("| | files | passes between files |")
    print("| --- | --- | --- |")
    found = counted(read_config(options.config, [*PLAIN, *options.overrides]))
    for name, (files, passes) in found.items():
        print(f"| {name} | {len(files)} | {passes.total()} |")
    for name, (files, _) in found.items():
        print(f"\n{name}: {', '.join(sorted(files))}")


if __name__ == "__main__":
    main()
