"""What evaluating during training costs: its share of the run's time, for a config as it stands.

    python benchmarks/evaluation_cost.py configs/image/mnist/small.yaml

Trains in memory and writes nothing. Blocks of training steps alternate with evaluations in one
process; the share follows from the medians and the config's interval.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

from fluxsmith.config import read_config
from fluxsmith.device import pick_device
from fluxsmith.evaluation.measurement import during_training
from fluxsmith.training.run import build_trainer

ROUNDS = 5
STEPS = 10  # training steps of a round


def main(config_file: str, *overrides: str) -> None:
    config = read_config(Path(config_file), list(overrides))
    scores = during_training(config)
    if scores is None:
        sys.exit(f"{config_file} never evaluates: evaluate.every={config.evaluate.every}")
    trainer = build_trainer(config, pick_device(config.device))
    trainer.train_step()

    steps, evaluations = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(STEPS):
            trainer.train_step()
        if trainer.pipeline.device.type == "cuda":
            torch.cuda.synchronize()
        trained = time.perf_counter()
        with trainer.held.holding(trainer.ema.weights):
            scores(trainer.pipeline)
        steps.append((trained - began) / STEPS)
        evaluations.append(time.perf_counter() - trained)
    step, evaluation = statistics.median(steps), statistics.median(evaluations)
    every = config.evaluate.every
    print(f"metrics         {', '.join(config.evaluate.metrics)}, every {every} steps")
    print(f"training step   {step:.3f} s ({min(steps):.3f} to {max(steps):.3f})")
    print(f"evaluation      {evaluation:.2f} s ({min(evaluations):.2f} to {max(evaluations):.2f})")
    print(f"share of a run  {evaluation / (evaluation + every * step):.2%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
