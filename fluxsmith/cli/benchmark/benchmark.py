"""A benchmark from a config to tables: ours beside others, and both beside the machine's peak."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.profiler import profile

from fluxsmith.cli.benchmark.bench_table import tables
from fluxsmith.cli.benchmark.sides import SIDES, Ours, at_work
from fluxsmith.cli.options import this_command
from fluxsmith.config import RunConfig, read_config
from fluxsmith.device import autocast, pick_device
from fluxsmith.kernels.timing import (
    device_name,
    matrix_products,
    product_flops,
    seconds,
    spread,
    synchronise,
    turns,
)
from fluxsmith.model.flops import training_flops
from fluxsmith.storage.files import make_folder, write_text
from fluxsmith.training.console import ProgressConsole
from fluxsmith.training.run import build_trainer
from fluxsmith.training.trainer import Trainer

STARTS = 3  # of each command
PROFILED = 3  # training steps

Run = tuple[Path, list[str]]  # a config's file, and overrides
Report = Callable[[str, float | None], None]  # of what is going on, and the seconds that are left


def bench(
    run: Run, against: list[str], rounds: int, steps: int, pictures: int, json_file: Path | None
) -> int:
    """Measures, prints tables, and writes the figures where asked to. Returns the exit code: after
    Ctrl-C, the tables are those of what was measured until then."""
    code = 0
    config = read_config(*run)
    trainer = build_trainer(config, pick_device(config.device))  # it takes no step
    found = _beforehand(trainer) | {"command": this_command(), "config": config.model_dump()}
    names = ["ours", *(name for name in SIDES if name.removesuffix("-compiled") in against)]
    prompts = [trainer.captions[i % len(trainer.captions)] for i in range(pictures)]
    with ProgressConsole() as progress:
        try:
            _startup(found["startup"], run, progress.report)
            _sides(found, run, names, prompts, rounds, steps, progress.report)
        except KeyboardInterrupt:
            code = 130
    for sheet in tables(found, config.train.batch_size, pictures):
        Console(markup=False).print(sheet)
    if json_file is not None:
        write_text(json_file, json.dumps(found, indent=2) + "\n")
    return code


def _beforehand(trainer: Trainer) -> dict[str, Any]:
    """What is known before anything is measured, with a place for what will be."""
    device, pipeline = trainer.pipeline.device, trainer.pipeline
    captions = trainer.loader.batch(0).captions
    txt = pipeline.encode_text(captions).tokens.shape[1]
    img = pipeline.image_tokens(pipeline.latent_shape)
    with autocast(device, pipeline.config.train.precision):
        half = torch.is_autocast_enabled(device.type)
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": "bfloat16" if half else "float32",
        "step_flops": len(captions) * training_flops(pipeline.network.params, txt, img),
        "product_flops": product_flops(device),
        "startup": {},
        "first_step": {},
        "peak_memory": {},
        "seconds": {},
    }


def _startup(found: dict[str, float], run: Run, report: Report) -> None:
    """How long a person waits for imports, for help, and for a run of one step."""
    config_file, overrides = run
    with tempfile.TemporaryDirectory() as folder:
        train = ["-m", "fluxsmith", "train", str(config_file), *overrides]
        commands = {
            "import torch": ["-c", "import torch"],
            "fluxsmith --help": ["-m", "fluxsmith", "--help"],
            "train, one step": [*train, "train.steps=1", f"output_dir={folder}", "--overwrite"],
        }
        for name, command in commands.items():
            report(f"startup: {name}", None)
            start = partial(
                subprocess.run, [sys.executable, *command], capture_output=True, check=True
            )
            cpu = torch.device("cpu")
            found[name] = statistics.median(seconds(start, cpu) for _ in range(STARTS))


def _sides(
    found: dict[str, Any],
    run: Run,
    names: list[str],
    prompts: list[str],
    rounds: int,
    steps: int,
    report: Report,
) -> None:
    """The memory and the first step of each side, then the seconds of all in turn."""
    config = read_config(*run)
    device, dtype = pick_device(config.device), getattr(torch, found["dtype"])
    calls = {("products", name): call for name, call in matrix_products(device, dtype).items()}
    with ExitStack() as stack:
        for name in names:
            report(f"{name}: its memory and its first step", None)
            side = stack.enter_context(at_work(name, *run))
            found["first_step"][name] = seconds(partial(side, "train_step"), device)
            memory = found["peak_memory"][name] = {"training": side("train_step")}
            calls["training", name] = partial(side, "train_step")
            if name == "lesson":  # there for the time of its training step alone
                continue
            with at_work(name, *run) as drawing:  # a process's high-water mark never falls
                batch = prompts[: config.train.batch_size]
                memory["drawing"] = drawing("sample", batch, steps, 2.0)
            for guidance in (1.0, 2.0):
                call = partial(side, "sample", prompts, steps, guidance)
                calls[f"drawing, guidance {guidance:g}", name] = call
        fewer = max(2, rounds // 3)
        numbers = {key: fewer if "drawing" in key[0] else rounds for key in calls}
        for (part, name), taken, left in turns(calls, device, numbers):
            report(f"{part}: {name} {taken[-1]:.2f} s" if taken else "warming up", left)
            if taken:
                found["seconds"].setdefault(part, {})[name] = spread(taken)


def profile_step(config: RunConfig, folder: Path) -> None:
    """Where the time of a training step goes: writes a table of operations, profile.txt, and
    trace.json (for https://ui.perfetto.dev) into the folder."""
    make_folder(folder, "--profile")
    device = pick_device(config.device)
    ours = Ours(config, device)
    ours.train_step()
    with profile() as profiler:  # of every device that there is
        for _ in range(PROFILED):
            ours.train_step()
        synchronise(device)
    by = f"self_{'cuda' if device.type == 'cuda' else 'cpu'}_time_total"
    text = profiler.key_averages().table(sort_by=by, row_limit=40)
    write_text(folder / "profile.txt", text + "\n")
    profiler.export_chrome_trace(str(folder / "trace.json"))
    where = f"table  {folder / 'profile.txt'}\ntrace  {folder / 'trace.json'}"
    Console(markup=False).print(f"{text}\n{where}", markup=False, highlight=False, soft_wrap=True)
