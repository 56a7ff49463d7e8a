"""Who is measured: one name each, built from a config."""

from collections.abc import Callable
from typing import Protocol

import torch

from fluxsmith.benchmark.ours import Ours
from fluxsmith.benchmark.theirs import Diffusers, Lesson
from fluxsmith.config import RunConfig


class Side(Protocol):
    name: str

    def train_step(self) -> None: ...

    def sample(self, prompts: list[str], steps: int, guidance: float) -> torch.Tensor: ...


SIDES: dict[str, Callable[[RunConfig, torch.device], Side]] = {
    "ours": Ours,
    "plain": lambda config, device: Ours(uncompiled_config(config), device),
    "diffusers": lambda config, device: Diffusers(config, device, compiled=False),
    "diffusers-compiled": lambda config, device: Diffusers(config, device, compiled=True),
    "lesson": Lesson,
}


def uncompiled_config(config: RunConfig) -> RunConfig:
    train = config.train.model_copy(update={"compile": False})
    return config.model_copy(update={"train": train})


def build(name: str, config: RunConfig, device: torch.device) -> Side:
    return SIDES[name](config, device)
