"""How long a person waits before anything happens: imports, --help, the first training step."""

import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = 3


def startup_seconds(config: str, overrides: list[str]) -> dict[str, float]:
    """Medians over new processes that take turns."""
    python = [sys.executable, "-c"]
    with tempfile.TemporaryDirectory() as folder:
        settings = [*overrides, "train.steps=1", f"output_dir={folder}/run"]
        commands = {
            "import torch": [*python, "import torch"],
            "import torch, fluxsmith": [*python, "import torch, fluxsmith"],
            "fluxsmith --help": [sys.executable, "-m", "fluxsmith", "--help"],
            "train: first step": [
                *[sys.executable, "-m", "fluxsmith", "train", config, *settings],
                "--overwrite",
            ],
        }
        found: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                began = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                found[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in found.items()}
