"""What train.deterministic costs: the time of a step with it and without, on a device of choice.

    python benchmarks/deterministic.py configs/image/mnist/small.yaml device=cuda

Each measurement is a process of its own, in turn: cuBLAS reads its setting once in a process.
"""

import argparse
import multiprocessing
import statistics
import sys

from fluxsmith.config import read_config
from fluxsmith.device import pick_device
from fluxsmith.errors import UserError
from fluxsmith.kernels.timing import seconds
from fluxsmith.training.deterministic import deterministic
from fluxsmith.training.run import build_trainer


def seconds_a_step(config_file: str, overrides: list[str], wanted: bool, steps: int) -> float:
    config = read_config(config_file, overrides)
    device = pick_device(config.device)
    with deterministic(wanted):
        trainer = build_trainer(config, device)
        times = [seconds(trainer.train_step, device) for _ in range(steps)]
    return statistics.median(times[steps // 4 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=20, help="of a process; the median counts")
    parser.add_argument("--rounds", type=int, default=3, help="processes with it, and without")
    options = parser.parse_args()
    try:
        device = pick_device(read_config(options.config, options.overrides).device)
    except UserError as error:
        sys.exit(f"error: {error}")
    found: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(options.rounds):
        for wanted, times in found.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                arguments = (options.config, options.overrides, wanted, options.steps)
                times.append(pool.apply(seconds_a_step, arguments))
    with_, without = (statistics.median(times) for times in found.values())
    print(f"{device}: deterministic {with_:.4f} s a step, otherwise {without:.4f}", end="")
    print(f": {with_ / without - 1:+.1%}")


if __name__ == "__main__":
    main()
