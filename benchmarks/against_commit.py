"""How often as fast is NEW? Two versions, or one and diffusers, step by step in turn.

    python benchmarks/against_commit.py OLD_TREE NEW_TREE configs/image/mnist/flux.yaml
    python benchmarks/against_commit.py .@diffusers-compiled . configs/image/mnist/flux.yaml \
        train.compile=true

A tree is a checkout; after @ comes a side of `fluxsmith bench`, `ours` by default, or `off`: ours
with train.kernels=off. Each side works in a process of its own. `--cpu-time` counts the time that a
core computed, by one thread: on a machine that others use too. `--avx2` computes as on a processor
without AVX-512, on both sides.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

WORKER = """
import importlib, json, os, sys, time
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
side, cpu_time, config, *overrides = json.loads(sys.argv[1])
import torch
from fluxsmith.config import read_config
try:
    from fluxsmith.cli.benchmark.sides import SIDES
except ModuleNotFoundError:  # where it was before
    SIDES = importlib.import_module("fluxsmith.benchmark.sides").SIDES
now = time.process_time if cpu_time else time.perf_counter
if cpu_time:
    torch.set_num_threads(1)
side = SIDES[side](read_config(config, overrides), torch.device("cpu"))
for line in sys.stdin:
    name, *given = json.loads(line)
    began = now()
    getattr(side, name)(*given)
    print(now() - began, file=answers, flush=True)
"""

# On Zen 4 and other processors with AVX-512: what each library leaves unused.
WITHOUT_AVX512 = {
    "FLUXSMITH_CPU_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",  # which inductor follows too
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


class Side:
    def __init__(self, which: str, options: argparse.Namespace) -> None:
        tree, _, side = which.partition("@")
        overrides = list(options.overrides)
        if side == "off":
            side, overrides = "ours", [*overrides, "train.kernels=off"]
        given = [side or "ours", options.cpu_time, options.config, *overrides]
        environment = os.environ | {"PYTHONPATH": str(Path(tree).resolve())}
        environment |= WITHOUT_AVX512 if options.avx2 else {}
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps(given)],
            env=environment, cwd=tree, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def seconds(self, call: list[object]) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(call), file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def compare(sides: list[Side], call: list[object], rounds: int) -> str:
    taken: list[list[float]] = [[], []]
    for n in range(rounds + 2):  # two to warm up, and compile
        for i in (0, 1) if n % 2 else (1, 0):
            seconds = sides[i].seconds(call)
            if n >= 2:
                taken[i].append(seconds)
    ratios = sorted(a / b for a, b in zip(*taken, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    old, new = (statistics.median(times) for times in taken)
    return (
        f"{old * 1e3:8.1f} ms, {new * 1e3:8.1f} ms: NEW is {statistics.median(ratios):.3f} times "
        f"as fast ({low:.3f} to {high:.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("config", help="a path that both trees have")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=21, help="of training; a third for drawing")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="of each drawing")
    parser.add_argument("--only", choices=["training", "drawing"])
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--avx2", action="store_true")
    options = parser.parse_args()
    options.config = str(Path(options.config).resolve())
    sides = [Side(which, options) for which in (options.old, options.new)]
    try:
        if options.only != "drawing":
            print("training step ", compare(sides, ["train_step"], options.rounds), flush=True)
        if options.only != "training":
            prompts = [str(i % 10) for i in range(options.pictures)]
            drawing = ["sample", prompts, options.steps, 2.0]
            print("drawing       ", compare(sides, drawing, max(3, options.rounds // 3)))
    finally:
        for side in sides:
            side.close()


if __name__ == "__main__":
    main()
