"""What looking at a run costs: `train.diagnose` in shares of a run's time.

    python benchmarks/signals_cost.py configs/image/digits/tiny.yaml configs/image/mnist/small.yaml

Steps and looks alternate in one process, so that a busy machine slows both.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from fluxsmith.config import read_config
from fluxsmith.kernels.memory import keep_freed_memory
from fluxsmith.training.run import build_trainer
from fluxsmith.training.signals import LOOKS


def seconds(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def cost(path: str, device: str, rounds: int) -> str:
    """Of one config, in words."""
    config = read_config(path, ["output_dir=unused"])
    trainer = build_trainer(config, torch.device(device))
    signals, steps = trainer.signals, config.train.steps
    batch, last = trainer.loader.batch(0), steps // LOOKS - 1

    def look() -> None:
        signals.look(last + 1)

    def add() -> None:
        signals.alignment.add(batch.images, batch.captions)

    trainer.train_step()
    signals.before_step(last, batch)
    once = seconds(look)  # held-out pictures are read
    a_step, a_look, an_add = [], [], []
    for _ in range(rounds):
        a_step += [seconds(trainer.train_step) for _ in range(3)]
        signals.before_step(last, batch)
        a_look.append(seconds(look))
        an_add.append(seconds(add))
    step, later, one = map(statistics.median, (a_step, a_look, an_add))
    share = (once + len(signals.looks) * later + steps / LOOKS * one) / (steps * step)
    return (
        f"{config.name}: a step {step * 1e3:.1f} ms, a look {later * 1e3:.1f} ms, the first "
        f"{once * 1e3:.0f} ms, captions {one * 1e3:.2f} ms for a tenth of the steps: "
        f"{share:.2%} of {steps} steps"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    keep_freed_memory()
    for path in options.configs:
        print(cost(path, options.device, options.rounds))


if __name__ == "__main__":
    main()
