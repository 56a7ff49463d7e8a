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
                found[name].append(_seconds(command, "step 1/" if "train" in command else None))
    return {name: statistics.median(values) for name, values in found.items()}


def _seconds(command: list[str], until: str | None) -> float:
    """From the command to its end, or to the first line that begins so."""
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        lines = iter(run.stdout)
        said = next((line for line in lines if until and line.startswith(until)), None)
        taken = time.perf_counter() - began
        _, errors = run.communicate()
    if run.returncode != 0 or (until and said is None):
        raise RuntimeError(f"{' '.join(command)} failed:\n{errors}")
    return taken
