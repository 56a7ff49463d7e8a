"""A benchmark from a config to a table: ours beside others, and both beside the machine's peak."""

import json
import platform
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fluxsmith.benchmark.machine import matrix_products, memory_bandwidth, product_flops
from fluxsmith.benchmark.memory import side_memory
from fluxsmith.benchmark.startup import startup_seconds
from fluxsmith.benchmark.timing import Spread, seconds, take_turns
from fluxsmith.benchmark.worker import Worker
from fluxsmith.config import RunConfig
from fluxsmith.device import autocast, pick_device
from fluxsmith.files import write_text
from fluxsmith.model.cost import training_flops
from fluxsmith.training.run import build_trainer
from fluxsmith.training.trainer import Trainer

OPPONENTS = {
    "plain": ("plain",),
    "diffusers": ("diffusers", "diffusers-compiled"),
    "lesson": ("lesson",),
}


def bench(
    config: RunConfig,
    config_file: Path,
    overrides: list[str],
    against: list[str],
    *,
    rounds: int,
    steps: int,
    pictures: int,
    command: str,
    json_file: Path | None = None,
) -> dict[str, Any]:
    """Measures, prints a table, and writes the figures where asked to."""
    device = pick_device(config.device)
    names = ["ours", *(side for name in against for side in OPPONENTS[name])]
    compared = [name for name in names if name != "lesson"]  # which is there for its time alone
    with autocast(device, config.train.precision):
        half = torch.is_autocast_enabled(device.type)
    dtype = torch.bfloat16 if half else torch.float32
    ours = build_trainer(config, device)  # for its sizes and captions; it takes no step
    prompts = [ours.captions[i % len(ours.captions)] for i in range(pictures)]
    with ExitStack() as stack:
        sides: dict[str, Worker] = {}
        first: dict[str, float] = {}
        for name in names:
            sides[name] = stack.enter_context(Worker(name, str(config_file), overrides))
            first[name] = seconds(sides[name].train_step, device)
        products = matrix_products(device, dtype)
        calls = products | {name: side.train_step for name, side in sides.items()}
        taken = {name: Spread.of(s) for name, s in take_turns(calls, device, rounds).items()}
        found = {
            "command": command,
            "config": config.model_dump(),
            "machine": machine(device, dtype)
            | {"peaks": {name: product_flops(device) / taken[name].median for name in products}},
            "operations": operations(ours),
            "training": {name: asdict(taken[name]) for name in sides},
            "first_step": first,
            "sampling": sampling(
                {name: sides[name] for name in compared}, prompts, device, rounds, steps
            ),
        }
    found["peak_memory"] = {
        work: {name: side_memory(name, work, str(config_file), overrides) for name in compared}
        for work in ("train", "sample")
    }
    found["startup"] = startup_seconds(str(config_file), overrides)
    for sheet in tables(found, config.train.batch_size, pictures):
        Console().print(sheet)
    if json_file is not None:
        write_text(json_file, json.dumps(found, indent=2) + "\n")
    return found


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the machine is."""
    return {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "memory_bandwidth": memory_bandwidth(device),
    }


def operations(trainer: Trainer) -> int:
    """Of the network in one training step with the first batch's captions."""
    pipeline = trainer.pipeline
    captions = trainer.loader.batch(0).captions
    txt = pipeline.encode_text(captions).tokens.shape[1]
    img = pipeline.image_tokens(pipeline.latent_shape)
    return len(captions) * training_flops(pipeline.network.params, txt, img)


def sampling(
    sides: dict[str, Worker], prompts: list[str], device: torch.device, rounds: int, steps: int
) -> dict[str, Any]:
    """A picture of each prompt, at once by Euler, without guidance and with guidance 2."""
    found = {}
    for guidance in (1.0, 2.0):
        calls = {
            name: partial(side.sample, prompts, steps, guidance) for name, side in sides.items()
        }
        taken = take_turns(calls, device, max(2, rounds // 3))
        found[f"guidance {guidance:g}"] = {
            name: asdict(Spread.of(values)) for name, values in taken.items()
        }
    return found


def tables(found: dict[str, Any], batch: int, pictures: int) -> list[Table]:
    about, peaks = found["machine"], found["machine"]["peaks"]
    rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s by {name}" for name, rate in peaks.items())
    sheet = Table(
        title=f"{about['device']}, {about['threads']} threads, {about['dtype']}: matrix product "
        f"{rates}; memory {about['memory_bandwidth'] / 1e9:.1f} GB/s"
    )
    of_peaks = [f"of {name}'s peak" for name in peaks]
    for heading in ("", "s", "quartiles", "images/s", "ours is faster by", *of_peaks):
        sheet.add_column(heading)
    rows = [("training step", found["training"], batch, found["operations"])]
    rows += [(f"sampling, {name}", of, pictures, None) for name, of in found["sampling"].items()]
    for work, of, images, operations in rows:
        for name, spread in of.items():
            shares = [
                f"{operations / rate / spread['median']:.0%}"
                for rate in peaks.values()
                if operations and name == "ours"
            ]
            sheet.add_row(
                f"{work}: {name}",
                f"{spread['median']:.3f}",
                f"{spread['low']:.3f} to {spread['high']:.3f}",
                f"{images / spread['median']:,.1f}",
                "" if name == "ours" else f"{spread['median'] / of['ours']['median']:.2f}x",
                *shares,
            )
    other = Table(title="peak memory above the start, and waiting")
    other.add_column("")
    other.add_column("")
    for work, of in found["peak_memory"].items():
        for name, count in of.items():
            other.add_row(f"{work}: {name}", f"{count / 2**20:,.0f} MiB")
    for name, value in found["first_step"].items():
        other.add_row(f"first step with any compiling: {name}", f"{value:.1f} s")
    for name, value in found["startup"].items():
        other.add_row(name, f"{value:.2f} s")
    return [sheet, other]
