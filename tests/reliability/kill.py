"""Kills a run with `kill -9` at random, again and again, lets it end, and compares every byte that
is left with a run that was left alone.

    python -m tests.reliability.kill --kills 200

Each life is forked from this process, which has everything imported: so a life takes a second.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

from fluxsmith import checkpoint as checkpoints
from fluxsmith.cli import main
from fluxsmith.training.metrics import read_metrics

CONFIG = """
name: toy
output_dir: run
data: {source: digits, image_size: 8}
text: {width: 32, hidden_size: 64, depth: 0}
model: {patch_size: 4, hidden_size: 32, num_heads: 1, depth: 1, depth_single_blocks: 1,
        axes_dim: [8, 12, 12]}
train: {steps: 120, batch_size: 2, warmup_steps: 5, log_every: 3, learning_rate: 0.01,
        checkpoint_every: 4, keep_checkpoints: 3, keep_every: 40, sample_every: 40}
sample: {steps: 2, num_samples: 4}
evaluate: {every: 0}
"""
MOMENTS = ("writing", "training", "renaming", "writing", "starting")  # to kill at, in turn


def start(folder: Path, background: bool) -> int:
    """A life of the run in the folder; the process it is."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        override = f"train.background_save={str(background).lower()}"
        main(["train", "toy.yaml", override, "--resume", "auto"])
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def writing(run: Path) -> set[tuple[str, int]]:
    """The files, by name and inode, that checkpoints are being written to, or were when a life
    ended."""
    try:
        return {
            (entry.name, entry.inode())
            for entry in os.scandir(run)
            if entry.name.endswith(".pt.tmp")
        }
    except FileNotFoundError:
        return set()


def kill(pid: int, run: Path, moment: str, draw: random.Random) -> bool:
    """Kills the life at such a moment; whether it was not over before."""
    if moment == "starting":
        pause = draw.uniform(0, 1)
    else:
        before = writing(run)
        seen: set[tuple[str, int]] = set()
        writes = draw.randint(1, 8)  # of this life, before it ends
        while len(seen) < writes:
            if ended(pid):
                return False
            seen |= writing(run) - before
            time.sleep(0.0005)
        pause = {"writing": 0.001, "renaming": 0.02, "training": 0.5}[moment] * draw.random()
    time.sleep(pause)
    if ended(pid):
        return False
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def new_folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    (folder / "toy.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


def let_end(folder: Path, background: bool) -> None:
    _, status = os.waitpid(start(folder, background), 0)
    if status != 0:
        sys.exit(f"exit status {status} in {folder}:\n{(folder / 'log.txt').read_text()}")


def records(run: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in record.items() if key != "images_per_second"}
        for record in read_metrics(run / "metrics.jsonl")
    ]


def board(run: Path) -> list[tuple[int, str]]:
    """Every (step, tag) that TensorBoard's files hold, as they stand there."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return sorted(
        (event.step, value.tag)
        for file in (run / "tensorboard").iterdir()
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    )


def differences(one: Path, two: Path) -> tuple[int, list[str]]:
    """The bytes compared, and what differs between two runs' folders."""
    wrong, compared = [], 0
    names = [
        sorted(p.name for p in run.iterdir() if p.suffix in (".pt", ".png", ".txt", ".yaml"))
        for run in (one, two)
    ]
    if names[0] != names[1]:
        wrong.append(f"files: {names[0]} and {names[1]}")
    for name in names[0]:
        if name in names[1] and name not in ("config.yaml", "loss.png"):
            bytes_ = (one / name).read_bytes()
            compared += len(bytes_)
            if bytes_ != (two / name).read_bytes():
                wrong.append(name)
    if records(one) != records(two):
        wrong.append("metrics.jsonl")
    if board(one) != board(two):
        wrong.append("tensorboard")
    return compared, wrong


def check_whole(run: Path) -> int:
    """The checkpoints under a final name, each of which must be whole."""
    found = checkpoints.find(run)
    for _, path in found:
        checkpoints.load(path)
    return len(found)


def test(kills: int, seed: int, parent: Path, background: bool) -> dict[str, object]:
    draw = random.Random(seed)
    alone = new_folder(parent, "alone")
    let_end(alone, background)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    while counts["kills"] < kills:
        folder = new_folder(parent, f"round-{counts['rounds']}")
        over = False
        while counts["kills"] < kills and not over:
            moment = MOMENTS[counts["kills"] % len(MOMENTS)]
            before = writing(folder / "run")
            over = not kill(start(folder, background), folder / "run", moment, draw)
            if not over:
                counts["kills"] += 1
                cut_short = writing(folder / "run") - before
                counts["in the middle of a checkpoint"] += bool(cut_short)
                counts["whole checkpoints found"] += check_whole(folder / "run")
        let_end(folder, background)
        compared, differing = differences(alone / "run", folder / "run")
        counts["rounds"] += 1
        counts["bytes compared"] += compared
        wrong += [f"{folder.name}: {name}" for name in differing]
    return {**counts, "differing": wrong}


def command_line() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--foreground", action="store_true", help="train.background_save=false")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as parent:
        found = test(options.kills, options.seed, Path(parent), not options.foreground)
    print(json.dumps({**found, "seconds": round(time.monotonic() - began, 1)}))
    sys.exit(1 if found["differing"] else 0)


if __name__ == "__main__":
    command_line()
