"""Peak memory of one side's training step or sampling, measured in a process of its own, for the
high-water mark of a process never falls.

    python -m fluxsmith.benchmark.memory SIDE train|sample CONFIG [KEY=VALUE ...]
"""

import subprocess
import sys
from pathlib import Path

STEPS = 3  # of training
DRAWING_STEPS = 20  # the default, and enough for weights to be laid out (model.layouts.OFTEN)


def side_memory(side: str, work: str, config: str, overrides: list[str]) -> int:
    """Bytes at the highest, above what the process held before it built its side."""
    command = [sys.executable, "-m", "fluxsmith.benchmark.memory", side, work, config, *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def main(side: str, work: str, config_file: str, *overrides: str) -> None:
    from fluxsmith.benchmark.sides import build
    from fluxsmith.config import read_config
    from fluxsmith.device import peak_memory, pick_device

    config = read_config(Path(config_file), list(overrides))
    device = pick_device(config.device)
    before = peak_memory(device) or 0
    one = build(side, config, device)
    if work == "train":
        for _ in range(STEPS):
            one.train_step()
    else:
        one.sample(["1"] * config.train.batch_size, DRAWING_STEPS, 2.0)
    print((peak_memory(device) or 0) - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
