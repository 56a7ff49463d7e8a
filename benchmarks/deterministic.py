"""What train.deterministic costs: the time of a step with it and without.

python benchmarks/deterministic.py configs/image/mnist/small.yaml device=cuda
"""

import argparse
import statistics
import time

from fluxsmith.config import read_config
from fluxsmith.device import pick_device
from fluxsmith.training.deterministic import repeatable
from fluxsmith.training.run import build_trainer


def seconds_a_step(config_file: str, overrides: list[str], wanted: bool, steps: int) -> float:
    config = read_config(config_file, overrides)
    with repeatable(wanted):
        trainer = build_trainer(config, pick_device(config.device))
        times = []
        for _ in range(steps):
            began = time.perf_counter()
            trainer.train_step()
            trainer.window.means()  # waits for the device
            times.append(time.perf_counter() - began)
    return statistics.median(times[steps // 4 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    # Deterministic first: cuBLAS reads its setting once, at the first product.
    found = [
        seconds_a_step(options.config, options.overrides, wanted, options.steps)
        for wanted in (True, False)
    ]
    print(f"deterministic {found[0]:.4f} s a step, otherwise {found[1]:.4f}", end="")
    print(f": {found[0] / found[1] - 1:+.1%}")


if __name__ == "__main__":
    main()
