"""Who is measured: fluxsmith, the same uncompiled, diffusers, and the lesson's practice; each at
work in a process of its own."""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from fluxsmith.cli.benchmark.theirs import Diffusers, Lesson
from fluxsmith.config import RunConfig, read_config
from fluxsmith.device import peak_memory, pick_device
from fluxsmith.kernels.compiling import prepare_compiling, uncompiled
from fluxsmith.kernels.memory import keep_freed_memory
from fluxsmith.kernels.timing import synchronise
from fluxsmith.sampling.generate import Sampler
from fluxsmith.training.run import build_trainer, compile_for_training


class Ours:
    """The training step and the sampler that users run."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        if device.type == "cpu":  # as `fluxsmith train` does; drawing takes as long without
            keep_freed_memory()
        self.trainer = build_trainer(config, device)
        self.pipeline = self.trainer.pipeline
        for line in compile_for_training(self.pipeline, self.trainer.captions):
            print(line, file=sys.stderr)
        compiled = config.train.compile is True and not prepare_compiling(device)
        kernels = config.train.kernels
        self.sampler = Sampler(self.pipeline, kernels=kernels, compile=compiled)

    def train_step(self) -> None:
        """Data, text, forward, backward, clip, optimiser, average."""
        self.trainer.train_step()

    def sample(self, prompts: list[str], steps: int, guidance: float) -> torch.Tensor:
        with contextlib.nullcontext() if self.sampler.compile else uncompiled():
            return self.sampler.generate(
                prompts, steps=steps, guidance=guidance, solver="euler", batch_size=len(prompts)
            )


def plain(config: RunConfig, device: torch.device) -> Ours:
    """Ours, not compiled."""
    train = config.train.model_copy(update={"compile": False})
    return Ours(config.model_copy(update={"train": train}), device)


SIDES: dict[str, Callable[[RunConfig, torch.device], Ours | Diffusers]] = {
    "ours": Ours,
    "plain": plain,
    "diffusers": lambda config, device: Diffusers(config, device, compiled=False),
    "diffusers-compiled": lambda config, device: Diffusers(config, device, compiled=True),
    "lesson": Lesson,
}


@contextlib.contextmanager
def at_work(side: str, config_file: Path, overrides: list[str]) -> Iterator[Callable[..., int]]:
    """A side in another process, so that sides that take turns share no memory allocator, no
    caches of compiled code and no settings.

    Yields a function that is given the name of a method and its arguments. It returns when the work
    is done, raises what was raised there, and gives the most bytes of memory so far, above what the
    process held before it built its side.
    """
    spawn = multiprocessing.get_context("spawn")
    # Ctrl-C is for the process that measures, which then ends this one.
    with ProcessPoolExecutor(1, spawn, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        pid = pool.submit(os.getpid).result()
        try:
            pool.submit(_build, side, config_file, overrides).result()
            yield lambda *work: pool.submit(_call, *work).result()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


_here: dict[str, Any] = {}  # of the other process: its side, the device, the memory at its start


def _build(side: str, config_file: Path, overrides: list[str]) -> None:
    os.dup2(2, 1)  # standard output is for the tables
    config = read_config(config_file, overrides)
    device = pick_device(config.device)
    _here.update(device=device, before=peak_memory(device) or 0)
    _here["side"] = SIDES[side](config, device)


def _call(method: str, *arguments: Any) -> int:
    getattr(_here["side"], method)(*arguments)
    synchronise(_here["device"])
    return (peak_memory(_here["device"]) or 0) - int(_here["before"])
