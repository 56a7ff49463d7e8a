"""`fluxsmith plan` beside the truth: the memory and the seconds of a training step, planned and
measured, for every config that trains on this machine and ten made-up ones.

    python benchmarks/plan_accuracy.py --out results/plan.json [--rounds 3] [--only NAME ...]

Each side is a process of its own, in turn with the other; the medians of some rounds are compared.
Measured memory is VmHWM after some steps less VmRSS before the trainer was built, when a toy
network had been trained in the same process and its memory handed back: so libraries, thread pools
and their buffers are in neither side. Nor is what a student reads from files that stay open, the
teacher's weights and its trajectories: the system takes back their pages. Measured seconds are the
median of those steps, without compiling. Rounds that are in FILE are not run again, and what can't
be measured here, for want of data, is told and left out. Linux only; for seconds the machine must
do nothing else, which memory does not depend on.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from fluxsmith.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs" / "image"
SHIPPED = (
    "digits/tiny", "digits/colored", "digits/fill", "digits/edit", "emoji/small", "mnist/small",
    "cifar10/flux", "mnist/flux",
)  # fmt: skip
# Of a teacher that was not trained, which makes no difference to what they take.
STUDENTS = "digits/tiny-dev", "digits/tiny-4step", "mnist/small-dev", "mnist/small-4step"
STEPS = 6  # measured; two more come before
WITHIN = 0.05, 0.15  # what memory and seconds are to be off by at the most

TOY = """
data: {source: digits, image_size: 16, resize: stretch}
text: {width: 64, hidden_size: 64}
model: {patch_size: 4, hidden_size: 64, num_heads: 1, depth: 1, depth_single_blocks: 1}
train: {steps: 6, batch_size: 8, compile: false}
"""

# Overrides of configs/image/digits/tiny.yaml.
MADE_UP = {
    "wide": "model.hidden_size=512 model.num_heads=8",
    "deep": "model.depth=8 model.depth_single_blocks=16",
    "dual only": "model.depth=4 model.depth_single_blocks=0",
    "single only": "model.depth=0 model.depth_single_blocks=6",
    "many tokens": "data.image_size=64 train.batch_size=8",
    "large batch": "train.batch_size=256",
    "accumulated": "train.batch_size=128 train.accumulate=4",
    "kernels off": "train.kernels=off",
    "bfloat16": "train.precision=bfloat16 train.batch_size=16",
    "much text": "text.hidden_size=512 text.depth=4 text.width=768",
}


def cases() -> dict[str, tuple[Path, list[str]]]:
    tiny = CONFIGS / "digits" / "tiny.yaml"
    return {name: (CONFIGS / f"{name}.yaml", []) for name in SHIPPED + STUDENTS} | {
        name: (tiny, changed.split()) for name, changed in MADE_UP.items()
    }


def save_teacher(student: Path, folder: str) -> None:
    """What a student's config learns from, at its first step."""
    import torch

    from fluxsmith.config import read_config
    from fluxsmith.storage import checkpoint as checkpoints
    from fluxsmith.training.run import build_trainer

    file = student.with_stem(student.stem.rpartition("-")[0])
    trainer = build_trainer(read_config(file, []), torch.device("cpu"))
    trainer.train_step()
    checkpoints.save(Path(folder, "diffusion-1.pt"), trainer.state_dict())


def measured(file: Path, overrides: list[str]) -> tuple[float, float]:
    """The bytes of a training process above what a toy's took, and the seconds of a step."""
    from fluxsmith.config import read_config
    from fluxsmith.device import peak_memory, pick_device, resident_memory
    from fluxsmith.kernels.memory import keep_freed_memory, release_freed_memory
    from fluxsmith.kernels.timing import seconds
    from fluxsmith.planning.outline import Outline
    from fluxsmith.training.run import build_trainer

    keep_freed_memory()
    config = read_config(file, overrides)
    device = pick_device(config.device)
    Outline.of(config)  # opens the data, for the libraries of their source
    with tempfile.TemporaryDirectory() as folder:
        toy = Path(folder, "toy.yaml")
        toy.write_text(TOY)
        trainer = build_trainer(read_config(toy, []), device)
        for _ in range(2):
            trainer.train_step()
    del trainer
    release_freed_memory()
    base, in_files = resident_memory() or 0, pages_of_files()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    trainer = build_trainer(config, device)
    taken = [seconds(trainer.train_step, device) for _ in range(2 + STEPS)]
    memory = (peak_memory(device) or 0) - base - (pages_of_files() - in_files)
    return memory, median(taken[2:])


def pages_of_files() -> int:
    """The bytes of files that are resident in this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssFile:")[1].split()[0]) * 1024


def planned(file: Path, overrides: list[str]) -> tuple[float, float]:
    """The same, by `fluxsmith plan`."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "plan.json")
        command = [sys.executable, "-m", "fluxsmith", "plan", str(file), *overrides]
        subprocess.run([*command, "--json", str(found)], check=True, stdout=subprocess.DEVNULL)
        figures = json.loads(found.read_text())
    memory = figures["memory"]
    return sum(memory.values()) - memory.get("teacher", 0), figures["seconds"]


def alone(call: Any, *arguments: Any) -> Any:
    """In a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(cases()))
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    errors: dict[str, list[float]] = {"memory": [], "seconds": []}
    print(f"{'':20}{'memory, MiB':>28}{'':9}{'seconds a step':>20}")
    print(f"{'':20}{'planned':>14}{'measured':>14}{'':9}{'planned':>10}{'measured':>10}")
    for name in options.only:
        rounds, (file, overrides) = found.setdefault(name, []), cases()[name]
        try:
            while len(rounds) < options.rounds:
                with tempfile.TemporaryDirectory() as teacher:
                    if name in STUDENTS:
                        alone(save_teacher, file, teacher)
                        overrides = [f"objective.teacher={teacher}", "objective.trajectories=512"]
                    rounds.append([*planned(file, overrides), *alone(measured, file, overrides)])
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(found, indent=2) + "\n")
        except (UserError, subprocess.CalledProcessError) as error:
            print(f"{name:20}not measured: {error}", flush=True)
            continue
        memory, time, bytes_, seconds_ = map(median, zip(*rounds, strict=True))
        off = {"memory": memory / bytes_ - 1, "seconds": time / seconds_ - 1}
        for what, error in off.items():
            errors[what].append(abs(error))
        print(
            f"{name:20}{memory / 2**20:14,.1f}{bytes_ / 2**20:14,.1f}{off['memory']:+9.1%}"
            f"{time:10.4f}{seconds_:10.4f}{off['seconds']:+9.1%}",
            flush=True,
        )
    for (what, each), within in zip(errors.items(), WITHIN, strict=True):
        if each:
            near = sum(error <= within for error in each)
            told = f"{near} of {len(each)} within {within:.0%}, the farthest off by"
            print(f"{what}: {told} {max(each):.1%}")


if __name__ == "__main__":
    main()
