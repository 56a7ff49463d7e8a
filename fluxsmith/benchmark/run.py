"""A benchmark from a config to a table: ours beside others, and both beside the machine's peak."""

import json
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fluxsmith import processor
from fluxsmith.benchmark.machine import matrix_products, memory_bandwidth, product_flops
from fluxsmith.benchmark.memory import side_memory
from fluxsmith.benchmark.startup import startup_seconds
from fluxsmith.benchmark.table import tables
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
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor.name(),
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
