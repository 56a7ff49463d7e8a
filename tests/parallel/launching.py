"""Ranks as torchrun starts them, but forked: they have everything imported already."""

import contextlib
import os
import random
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from reliability.lives import Life

# What a rank imports, so that forked ones begin at once.
import fluxsmith.cli.torchrun
import fluxsmith.evaluation.measurement
import fluxsmith.parallel.sharding
import fluxsmith.training.run  # noqa: F401

TOY = """
name: toy
output_dir: run
device: cpu
data: {source: digits, image_size: 8}
text: {width: 32, hidden_size: 64, depth: 0}
model: {patch_size: 4, hidden_size: 32, num_heads: 1, depth: 1, depth_single_blocks: 1,
        axes_dim: [8, 12, 12]}
train: {steps: 6, batch_size: 8, warmup_steps: 5, log_every: 2, learning_rate: 0.01,
        checkpoint_every: 2, keep_checkpoints: 0, sample_every: 3, deterministic: true,
        schedule: constant}
parallel: {pieces: 4}
sample: {steps: 2, num_samples: 4}
evaluate: {every: 4, validation_images: 8}
"""


class Ranks:
    """Some ranks that run one command in a folder; `logs` is what each of them printed."""

    def __init__(
        self, folder: Path, size: int, *command: object, each: Callable[[int], object] = lambda r: 0
    ) -> None:
        port = free_port()

        def prepare(rank: int) -> None:
            os.chdir(folder)
            torch.set_num_threads(1)
            where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            ranks = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank}
            os.environ.update({key: str(value) for key, value in (where | ranks).items()})
            each(rank)

        logs = [folder / f"rank-{rank}.txt" for rank in range(size)]
        self.lives = [
            Life(log, *command, prepare=lambda rank=rank: prepare(rank))
            for rank, log in enumerate(logs)
        ]

    def wait(self, seconds: float = 120) -> list[int]:
        """The exit code of each, negative for a signal."""
        codes: list[int] = []
        try:
            for life in self.lives:
                codes.append(life.wait(seconds))
        finally:
            for life in self.lives[len(codes) + 1 :]:
                life.send(signal.SIGKILL)
        return codes

    @property
    def logs(self) -> list[str]:
        return [life.text() for life in self.lives]

    def told(self) -> str:
        """The ends of the logs, for a test that fails."""
        return "".join(f"\n-- rank {rank}\n{log[-20_000:]}" for rank, log in enumerate(self.logs))


def free_port() -> int:
    """Below those that systems give out by themselves, so that it is free a while later too."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as taken, contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return port


def write_config(folder: Path, **sections: dict[str, object]) -> None:
    """toy.yaml in the folder, with some keys of sections changed."""
    folder.mkdir(exist_ok=True)
    config = yaml.safe_load(TOY)
    for name, keys in sections.items():
        config[name] = config.get(name, {}) | keys
    (folder / "toy.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
