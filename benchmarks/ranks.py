"""What ranks cost: a step in one process, plainly started and by torchrun, and on two ranks of one
thread beside one process of two threads.

    python benchmarks/ranks.py configs/image/digits/tiny.yaml
    python benchmarks/ranks.py configs/image/mnist/small.yaml --rounds 3 --steps 5

Each side works in processes of its own, in turn with the others. Printed are the medians over
rounds of a step's seconds by the clock, and of the seconds that the first process computed, by
which runs can be compared on a machine that others use too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WORKER = """
import json, sys, time
from pathlib import Path
import torch
from fluxsmith.cli.torchrun import joined
from fluxsmith.config import read_config
from fluxsmith.kernels.memory import keep_freed_memory
from fluxsmith.training.run import build_trainer
out, steps, config, *overrides = sys.argv[1:]
keep_freed_memory()  # as training does
with joined() as ranks:
    trainer = build_trainer(read_config(config, overrides), torch.device("cpu"), ranks=ranks)
    for _ in range(3):
        trainer.train_step()
    began = time.perf_counter(), time.process_time()
    for _ in range(int(steps)):
        ranks.agree(0, 0)
        trainer.train_step()
    taken = time.perf_counter() - began[0], time.process_time() - began[1]
    if ranks.first:
        Path(out).write_text(json.dumps([t / int(steps) for t in taken]))
"""
SIDES = {  # ranks (0: without torchrun), threads of each
    "one process, one thread": (0, 1),
    "the same under torchrun": (1, 1),
    "one process, two threads": (0, 2),
    "two ranks of one thread": (2, 1),
}
PAIRS = list(
    zip(list(SIDES)[1::2], list(SIDES)[::2], strict=True)
)  # the second is what counts as 1


def measured(ranks: int, threads: int, given: list[str]) -> tuple[float, float]:
    """The seconds of a step, by the clock and computed."""
    with tempfile.TemporaryDirectory() as folder:
        worker, out = Path(folder, "worker.py"), Path(folder, "out.json")
        worker.write_text(WORKER, encoding="utf-8")
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [sys.executable, *(launcher if ranks else []), str(worker), str(out), *given]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        wall, cpu = json.loads(out.read_text())
    return wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    given = [str(options.steps), str(Path(options.config).resolve()), *options.overrides]
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for n in range(options.rounds):
        for side, (ranks, threads) in list(SIDES.items())[:: 1 if n % 2 else -1]:
            taken[side].append(measured(ranks, threads, given))
    print("| | ms a step | ms computed |\n| --- | --- | --- |")
    for side, found in taken.items():
        wall, cpu = (statistics.median(times) * 1e3 for times in zip(*found, strict=True))
        print(f"| {side} | {wall:.1f} | {cpu:.1f} |")
    print()
    for side, beside in PAIRS:
        ratios = [a / b for (a, _), (b, _) in zip(taken[side], taken[beside], strict=True)]
        ends = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{side}: {statistics.median(ratios):.3f} times {beside} (rounds: {ends})")


if __name__ == "__main__":
    main()
