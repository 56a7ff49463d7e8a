"""What checkpoints cost a run: how long training waits for one, and how much the writing beside it
slows the steps, as a share of a run with the config's interval.

    python benchmarks/save_cost.py configs/image/mnist/flux.yaml --saves 3
"""

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path

from fluxsmith.config import RunConfig, read_config
from fluxsmith.device import pick_device
from fluxsmith.kernels.timing import seconds
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.run import build_trainer
from fluxsmith.training.saving import Saver
from fluxsmith.training.trainer import Trainer


def seconds_of(trainer: Trainer, steps: int) -> float:
    """The median time of a step."""
    device = trainer.pipeline.device
    return statistics.median(seconds(trainer.train_step, device) for _ in range(steps))


def measure(config: RunConfig, saves: int, steps: int) -> dict[str, float]:
    """Medians over the saves, in seconds."""
    trainer = build_trainer(config, pick_device(config.device))
    trainer.folder.mkdir(parents=True, exist_ok=True)
    seconds_of(trainer, 2)
    step = seconds_of(trainer, steps)
    waits, slowdowns = [], []
    with Saver(trainer.folder, config.train, print) as saver:
        for _ in range(saves):
            before = time.perf_counter()
            saver.save(trainer.state_dict())
            began, made = time.perf_counter(), 0
            waits.append(began - before)
            while any(thread.name == "checkpoint" for thread in threading.enumerate()):
                seconds_of(trainer, 1)
                made += 1
            slowdowns.append(time.perf_counter() - began - made * step)
        saver.finish()
    size = checkpoints.newest(trainer.folder).stat().st_size
    return {
        "step": step,
        "wait": statistics.median(waits),
        "slowdown": statistics.median(slowdowns),
        "megabytes": size / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="to time a step by")
    options = parser.parse_args()
    print("written             MB   s a step   s waited   s slower   share of the run")
    for background in ("true", "false"):
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            overrides = [f"output_dir={folder}", f"train.background_save={background}"]
            config = read_config(options.config, [*options.overrides, *overrides])
            found = measure(config, options.saves, options.steps)
        run = config.train.checkpoint_every * found["step"]
        share = (found["wait"] + found["slowdown"]) / run
        print(
            f"{'while training' if background == 'true' else 'while it waits':<15}"
            f"{found['megabytes']:>7.0f}{found['step']:>11.3f}{found['wait']:>11.2f}"
            f"{found['slowdown']:>11.2f}{share:>12.3%} at checkpoint_every="
            f"{config.train.checkpoint_every}"
        )


if __name__ == "__main__":
    main()
