"""Does `fluxsmith train` say what is wrong with a run, and nothing of one that is well?

    python benchmarks/planted_faults.py --seeds 3 --jobs 2

Plants each fault into the real trainer, on digits and on MNIST, trains the first tenth of the run
and notes what was said. Then trains healthy runs to their end and notes what was said of those.
Prints two tables in Markdown, and writes what all runs recorded to --records, if that is given.
Needs MNIST in $FLUXSMITH_DATA/mnist; `--only digits` does without.
"""

import argparse
import json
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from fluxsmith.config import RunConfig, read_config
from fluxsmith.data import load
from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.loader import Batch, MemoryLoader, Rows
from fluxsmith.kernels.memory import keep_freed_memory
from fluxsmith.model.attention import QKNorm
from fluxsmith.training.console import TrainingConsole
from fluxsmith.training.interrupt import Interrupt
from fluxsmith.training.recorder import Recorder, read_metrics
from fluxsmith.training.run import build_trainer
from fluxsmith.training.saving import Saver
from fluxsmith.training.trainer import Trainer

CONFIGS = Path(__file__).parents[1] / "configs" / "image"
BASES = {"digits": "digits/tiny.yaml", "mnist": "mnist/small.yaml"}


def nothing(trainer: Trainer) -> None:
    pass


def pictures_are(change: Callable[[ImageSet], ImageSet]) -> Callable[[Trainer], None]:
    """The trainer gets a loader of a changed data set."""

    def plant(trainer: Trainer) -> None:
        config = trainer.config
        parts = [change(load(config.data, "train"))]
        trainer.loader = MemoryLoader(parts, config.train.batch_size, config.seed, config.data)

    return plant


def shuffled(data: ImageSet) -> ImageSet:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return replace(data, labels=data.labels[order])


def wrong_for_a_third(data: ImageSet) -> ImageSet:
    draw = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(data), generator=draw) < 1 / 3
    n = len(data.captions)
    others = (data.labels + torch.randint(1, n, (len(data),), generator=draw)) % n
    return replace(data, labels=torch.where(wrong, others, data.labels))


def one_alone(data: ImageSet) -> ImageSet:
    first = torch.zeros(len(data), dtype=torch.long)
    return replace(data, images=data.images[first], labels=data.labels[first])


def text_frozen(trainer: Trainer) -> None:
    assert isinstance(trainer.pipeline.text, nn.Module)
    trainer.pipeline.text.requires_grad_(False)


def all_dropped(trainer: Trainer) -> None:
    assert isinstance(trainer.loader, MemoryLoader)
    trainer.loader.caption_dropout = 1.0


def average_stays(trainer: Trainer) -> None:
    trainer.ema.update = lambda *given: None  # type: ignore[method-assign]


def bfloat16_weights(trainer: Trainer) -> None:
    """As if they were kept so: rounded after every step."""
    weights = list(trainer.pipeline.parameters())

    def round_weights(*given: Any) -> None:
        with torch.no_grad():
            for p in weights:
                p.copy_(p.bfloat16())

    round_weights()
    trainer.optimiser.register_step_post_hook(round_weights)


def pictures_to_255(trainer: Trainer) -> None:
    read = trainer.loader.batch

    def batch(step: int, rows: Rows = None) -> Batch:
        found = read(step, rows)
        return Batch((found.images + 1) * 127.5, found.captions)

    trainer.loader.batch = batch  # type: ignore[method-assign]


class NoNorm(QKNorm):
    """Queries and keys as they are."""

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k


def no_qk_norm(trainer: Trainer) -> None:
    for part in trainer.pipeline.network.modules():
        if isinstance(part, QKNorm):
            part.__class__ = NoNorm


@contextmanager
def no_layer_norm() -> Iterator[None]:
    def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, x, 1 + scale)

    with (
        mock.patch("fluxsmith.model.blocks.modulate", modulate),
        mock.patch("fluxsmith.kernels.accelerate.modulate", modulate),
    ):
        yield


@dataclass(frozen=True)
class Planted:
    """A fault: what is changed, and what is to be said of it."""

    said: str  # the name of a fault in training/diagnosis.py
    plant: Callable[[Trainer], None] = nothing
    rate: float = 1.0  # times the config's learning rate
    overrides: tuple[str, ...] = ()
    around: Callable[[], Any] = field(default=nullcontext)


FAULTS = {
    "learning rate x30": Planted("rate too high", rate=30),
    "learning rate /30": Planted("rate too low", rate=1 / 30),
    "captions shuffled": Planted("captions shuffled", pictures_are(shuffled)),
    "text frozen": Planted("text frozen", text_frozen),
    "all captions dropped": Planted("captions dropped", all_dropped),
    "labels wrong for a third": Planted("captions wrong", pictures_are(wrong_for_a_third)),
    "one image only": Planted("one picture", pictures_are(one_alone)),
    "averages that never move": Planted("average stuck", average_stays),
    "bfloat16 weights without masters": Planted("half precision", bfloat16_weights),
    "no layer norm": Planted("normalisation", around=no_layer_norm),
    "no norm of queries and keys": Planted(
        "normalisation", no_qk_norm, overrides=("train.kernels=off",)
    ),
    "pictures from 0 to 255": Planted("range of pictures", pictures_to_255),
}


def healthy() -> list[tuple[str, ...]]:
    """Thirty runs with nothing wrong: a config and its overrides."""
    digits, mnist = BASES["digits"], BASES["mnist"]
    short = ("train.steps=300", "train.warmup_steps=40")
    half = ("model.hidden_size=64", "model.num_heads=1")
    variants = [
        (),
        ("train.learning_rate=6e-4",),
        ("train.learning_rate=6e-3",),
        ("data.caption_dropout=0",),
        ("data.caption_dropout=0.3",),
        ("train.batch_size=32",),
        ("train.batch_size=128", "train.accumulate=2"),
        ("flow={}", "flow.prediction=data", "flow.timesteps=uniform"),
        ("flow={}",),
        ("train.ema_decay=0.99",),
        ("model.depth=2", "model.depth_single_blocks=0"),
    ]
    runs = [(digits, *short, *half, *variant) for variant in variants]  # 11
    runs += [(digits, *short, *variant, "seed=3") for variant in variants[:3]]  # 14
    runs += [(digits, *half, *variant, "seed=4") for variant in variants[:5]]  # 19
    runs += [(digits, "seed=5")]  # 20
    others = [*variants[:5], variants[6]]  # its batches are of 32
    runs += [(mnist, "train.steps=400", "train.warmup_steps=40", *each) for each in others]
    rates = ("train.learning_rate=3e-4",), ("train.learning_rate=3e-3",)
    runs += [("digits/colored.yaml", *short, *each) for each in [(), *rates, variants[3]]]  # 30
    return runs


@dataclass(frozen=True)
class Told:
    """What a run said."""

    name: str
    steps: int
    said: list[str]
    lines: list[str]
    records: list[dict[str, float]]


class Lines(TrainingConsole):
    """Keeps its lines to itself."""

    def __init__(self) -> None:
        super().__init__(1, 0)
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def tell(name: str, config: RunConfig, planted: Planted, share: float) -> Told:
    """Trains a share of a run with a fault planted in it."""
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder, planted.around():
        config = config.model_copy(update={"output_dir": folder})
        trainer = build_trainer(config, torch.device("cpu"))
        planted.plant(trainer)
        last = int(share * config.train.steps)

        class Then(Interrupt):
            @property
            def number(self) -> int:
                return signal.SIGTERM if trainer.step >= last else 0

        console = Lines()
        with Saver(Path(folder), config.train, console.say) as saver:
            trainer.run(Recorder(Path(folder), 0, console.say), console, Then(), saver)
        lines = [line for line in console.lines if re.match(r"step \d+: ", line)]
        records = read_metrics(Path(folder) / "metrics.jsonl")
        return Told(name, trainer.step, trainer.diagnosis.said, lines, records)


def read(base: tuple[str, ...], *more: str, rate: float = 1.0) -> RunConfig:
    """A config as runs of this benchmark have it."""
    quiet = ("train.sample_every=0", "train.checkpoint_every=0")
    path, *overrides = base
    config = read_config(CONFIGS / path, [*overrides, *quiet, *more])
    train = config.train.model_copy(update={"learning_rate": config.train.learning_rate * rate})
    return config.model_copy(update={"train": train})


def faulty(job: tuple[str, str, int]) -> tuple[str, str, Told]:
    base, name, seed = job
    planted = FAULTS[name]
    config = read((BASES[base],), f"seed={seed}", *planted.overrides, rate=planted.rate)
    return base, name, tell(f"{base}, seed {seed}", config, planted, 0.1)


def well(base: tuple[str, ...]) -> Told:
    return tell(" ".join(base), read(base), Planted(""), 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each")
    parser.add_argument("--only", default="digits,mnist", help=f"of {', '.join(BASES)}")
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--records", type=Path, metavar="FILE.json")
    parser.add_argument("--healthy", type=int, help="so many of them; all by default")
    options = parser.parse_args()
    wanted = options.faults.split(",") if options.faults else []
    bases = options.only.split(",")
    seeds = range(1, options.seeds + 1)
    jobs = [(base, name, seed) for name in wanted for base in bases for seed in seeds]
    runs = [run for run in healthy() if run[0].split("/")[0] in bases][: options.healthy]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        print("| planted | data | named | within | other lines |", flush=True)
        print("| --- | --- | --- | --- | --- |", flush=True)
        found: dict[tuple[str, str], list[Told]] = {}
        records = {}
        for base, name, told in pool.map(faulty, jobs):
            group = found.setdefault((base, name), [])
            group.append(told)
            records[f"{name}, {told.name}"] = told.records
            if len(group) < len(seeds):
                continue
            named = sum(FAULTS[name].said in one.said for one in group)
            others = {said for one in group for said in one.said} - {FAULTS[name].said}
            print(
                f"| {name} | {base} | {named} of {len(group)} | {told.steps} steps | "
                f"{', '.join(sorted(others))} |",
                flush=True,
            )
        print("\n| healthy run | steps | said |\n| --- | --- | --- |", flush=True)
        alarms = 0
        for told in pool.map(well, runs):
            alarms += bool(told.said)
            records[told.name] = told.records
            print(f"| {told.name} | {told.steps} | {'; '.join(told.lines)} |", flush=True)
    if options.records:
        options.records.write_text(json.dumps(records), encoding="utf-8")
    print(f"\n{alarms} of {len(runs)} healthy runs with a false alarm")


if __name__ == "__main__":
    main()
