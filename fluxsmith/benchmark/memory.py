"""Peak memory of one side's training step or sampling, measured in a process of its own, for the
high-water mark of a process never falls.

    python -m fluxsmith.benchmark.memory SIDE train|sample CONFIG [KEY=VALUE ...]
"""

import subprocess
import sys
from pathlib import Path

import torch

STEPS = 3


def peak_memory(side: str, work: str, config: str, overrides: list[str]) -> int:
    """Bytes at the highest, above what the process held before it built its side."""
    command = [sys.executable, "-m", "fluxsmith.benchmark.memory", side, work, config, *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def main(side: str, work: str, config_file: str, *overrides: str) -> None:
    from fluxsmith.benchmark.sides import build
    from fluxsmith.config import read_config
    from fluxsmith.device import pick_device

    config = read_config(Path(config_file), list(overrides))
    device = pick_device(config.device)
    before = high_water(device)
    one = build(side, config, device)
    for _ in range(STEPS):
        if work == "train":
            one.train_step()
        else:
            one.sample(["1"] * config.train.batch_size, 2, 2.0)
    print(high_water(device) - before)


def high_water(device: torch.device) -> int:
    """The most bytes held so far: on the device where it keeps count, else by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # POSIX only

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main(*sys.argv[1:])
