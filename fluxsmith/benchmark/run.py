"""A benchmark from a config to a table: ours beside others, and both beside the machine's peak."""

import json
import platform
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fluxsmith.benchmark.machine import matrix_product_rate, memory_bandwidth
from fluxsmith.benchmark.memory import side_memory
from fluxsmith.benchmark.ours import Ours
from fluxsmith.benchmark.sides import Side, build
from fluxsmith.benchmark.startup import startup_seconds
from fluxsmith.benchmark.timing import Spread, seconds, take_turns
from fluxsmith.config import RunConfig
from fluxsmith.device import autocast, pick_device
from fluxsmith.files import write_text
from fluxsmith.model.cost import training_flops

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
    sides: dict[str, Side] = {}
    first: dict[str, float] = {}
    for name in names:
        sides[name] = build(name, config, device)
        first[name] = seconds(sides[name].train_step, device)

    training = take_turns({name: side.train_step for name, side in sides.items()}, device, rounds)
    ours = sides["ours"]
    assert isinstance(ours, Ours)
    found = {
        "command": command,
        "config": config.model_dump(),
        "machine": machine(config, device),
        "operations": operations(ours, config),
        "training": {name: asdict(Spread.of(taken)) for name, taken in training.items()},
        "first_step": first,
        "sampling": sampling(
            {name: sides[name] for name in compared}, config, device, rounds, steps, pictures
        ),
        "peak_memory": {
            work: {name: side_memory(name, work, str(config_file), overrides) for name in compared}
            for work in ("train", "sample")
        },
        "startup": startup_seconds(str(config_file), overrides),
    }
    for sheet in tables(found, config.train.batch_size, pictures):
        Console().print(sheet)
    if json_file is not None:
        write_text(json_file, json.dumps(found, indent=2) + "\n")
    return found


def machine(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """What the machine reaches, in the precision that the run trains in."""
    with autocast(device, config.train.precision):
        half = torch.is_autocast_enabled(device.type)
    dtype = torch.bfloat16 if half else torch.float32
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "matrix_product_rate": matrix_product_rate(device, dtype),
        "memory_bandwidth": memory_bandwidth(device),
    }


def operations(ours: Ours, config: RunConfig) -> int:
    """Of the network in one training step with the first batch's captions."""
    captions = ours.trainer.loader.batch(0).captions
    txt = ours.pipeline.encode_text(captions).tokens.shape[1]
    img = ours.pipeline.image_tokens(ours.pipeline.latent_shape)
    return len(captions) * training_flops(ours.pipeline.network.params, txt, img)


def sampling(
    sides: dict[str, Side],
    config: RunConfig,
    device: torch.device,
    rounds: int,
    steps: int,
    pictures: int,
) -> dict[str, Any]:
    """`pictures` at once by Euler, without guidance and with guidance 2."""
    ours = sides["ours"]
    assert isinstance(ours, Ours)
    captions = ours.trainer.captions
    prompts = [captions[i % len(captions)] for i in range(pictures)]
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
    peak = found["machine"]["matrix_product_rate"]
    about = found["machine"]
    sheet = Table(
        title=f"{about['device']}, {about['threads']} threads, {about['dtype']}: matrix product "
        f"{peak / 1e9:,.0f} GFLOP/s, memory {about['memory_bandwidth'] / 1e9:.1f} GB/s"
    )
    for heading in ("", "s", "quartiles", "images/s", "ours is faster by", "of the peak"):
        sheet.add_column(heading)
    rows = [("training step", found["training"], batch, found["operations"] / peak)]
    rows += [(f"sampling, {name}", of, pictures, None) for name, of in found["sampling"].items()]
    for work, of, images, least in rows:
        for name, spread in of.items():
            share = f"{least / spread['median']:.0%}" if least and name == "ours" else ""
            sheet.add_row(
                f"{work}: {name}",
                f"{spread['median']:.3f}",
                f"{spread['low']:.3f} to {spread['high']:.3f}",
                f"{images / spread['median']:,.1f}",
                "" if name == "ours" else f"{spread['median'] / of['ours']['median']:.2f}x",
                share,
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
