"""A day's worth of steps in small: does a run's memory grow, or the number of its open files?

    python benchmarks/long_run.py --steps 20000 --plot long-run.png

Runs a toy config as a process of its own, with evaluations, pictures and checkpoints on the way,
and looks at it from outside (Linux only).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fluxsmith.training.recorder import read_metrics

CONFIG = """
data: {source: digits, image_size: 16, resize: stretch}
text: {width: 64, hidden_size: 64}
model: {patch_size: 4, hidden_size: 64, num_heads: 1, depth: 1, depth_single_blocks: 1}
train: {batch_size: 8, log_every: 10, sample_every: 500, checkpoint_every: 100}
sample: {steps: 2, num_samples: 4}
evaluate: {every: 500, validation_images: 20}
"""


def look(pid: int) -> tuple[float, int, int]:
    """Resident memory in MB, open files, threads."""
    process = Path(f"/proc/{pid}")
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
    )
    files = len(list((process / "fd").iterdir()))
    return int(status["VmRSS"].split()[0]) / 1000, files, int(status["Threads"])


def watch(folder: Path, steps: int, every: int) -> list[tuple[int, float, int, int]]:
    """(step, MB, open files, threads) about every so many steps."""
    config = folder / "toy.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "fluxsmith", "train", str(config)]
    command += [f"train.steps={steps}", f"output_dir={folder / 'run'}"]
    seen: list[tuple[int, float, int, int]] = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(0.2)
            records = read_metrics(folder / "run" / "metrics.jsonl")
            step = int(records[-1]["step"]) if records else 0
            if step >= (seen[-1][0] if seen else 0) + every:
                try:
                    seen.append((step, *look(process.pid)))
                except (FileNotFoundError, ProcessLookupError, KeyError):
                    break  # it has just ended
                print("{:>6}{:>8.1f}{:>12}{:>9}".format(*seen[-1]), flush=True)
        if process.wait():
            sys.exit(process.returncode)
    return seen


def plot(seen: list[tuple[int, float, int, int]], picture: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, memory, files, _ = zip(*seen, strict=True)
    axes.plot(steps, memory, color="black", linewidth=1.5)
    axes.set(xlabel="step", ylabel="resident memory (MB)", ylim=(0, 1.25 * max(memory)))
    axes.grid(alpha=0.3)
    beside = axes.twinx()
    beside.plot(steps, files, color="tab:orange", linewidth=1.0)
    beside.set(ylim=(0, 25))
    beside.set_ylabel("open files", color="tab:orange")
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--every", type=int, default=250)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    print("  step      MB  open files  threads")
    with tempfile.TemporaryDirectory() as folder:
        seen = watch(Path(folder), options.steps, options.every)
    tenth = max(1, len(seen) // 10)
    early = sum(s[1] for s in seen[tenth : 2 * tenth]) / tenth
    late = sum(s[1] for s in seen[-tenth:]) / tenth
    print(f"second tenth {early:.1f} MB, last tenth {late:.1f} MB: {late - early:+.1f} MB")
    if options.plot:
        plot(seen, options.plot)


if __name__ == "__main__":
    main()
