"""Optimisers, and the course of their learning rate. To add one, write a function from parameter
groups and settings to a `torch.optim.Optimizer`, and a line in `OPTIMISERS`."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fluxsmith.config.train_section import TrainConfig
from fluxsmith.errors import UserError

DEFAULT_TAIL = 0.3

Groups = list[dict[str, Any]]


def build_optimiser(
    modules: Mapping[nn.Module, float], config: TrainConfig
) -> torch.optim.Optimizer:
    """The optimiser that a config names, of all parameters of the modules that are trained, each
    with a multiple of the config's learning rate, which its groups keep as `rate`.

    Matrices decay; biases and scales do not.
    """
    if config.optimiser not in OPTIMISERS:
        known = ", ".join(OPTIMISERS)
        raise UserError(f"train.optimiser={config.optimiser}: must be one of {known}")
    groups = []
    for rate in dict.fromkeys(modules.values()):
        alike = [module for module, own in modules.items() if own == rate]
        trained = [p for module in alike for p in module.parameters() if p.requires_grad]
        matrices, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        groups += [
            {"params": matrices, "weight_decay": config.weight_decay, "rate": rate},
            {"params": others, "weight_decay": 0.0, "rate": rate},
        ]
    return OPTIMISERS[config.optimiser](groups, config)


def adamw(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """Loshchilov & Hutter 2019, algorithm 2; fused where there is a fused one."""
    beta1, beta2 = config.betas
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": (beta1, beta2)}
    on_cpu = any(p.device.type == "cpu" for group in groups for p in group["params"])
    if config.deterministic and on_cpu:
        # A CPU's fused one rounds the last few of a tensor otherwise, and so of each rank's share.
        return torch.optim.AdamW(groups, **settings, foreach=True)
    try:
        return torch.optim.AdamW(groups, **settings, fused=True)
    except RuntimeError:  # this device has none
        return torch.optim.AdamW(groups, **settings, foreach=True)


OPTIMISERS: dict[str, Callable[[Groups, TrainConfig], torch.optim.Optimizer]] = {"adamw": adamw}


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Takes over moments and step counts; the settings stay those it was built with."""
    settings = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimiser.param_groups
    ]
    optimiser.load_state_dict(state)
    for parameter, state_of_one in optimiser.state.items():
        for name, value in state_of_one.items():  # moments; counts of steps are scalars
            if value.ndim and value.shape != parameter.shape:
                raise ValueError(
                    f"{name} is {tuple(value.shape)} for {tuple(parameter.shape)} weights"
                )
    for group, own in zip(optimiser.param_groups, settings, strict=True):
        group.update(own)


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of optimiser step `step`, counted from 0."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return config.learning_rate * warmup * _SCHEDULES[config.schedule](step, config)


def _constant(step: int, config: TrainConfig) -> float:
    return 1.0


def _cosine(step: int, config: TrainConfig) -> float:
    """From 1 after the warm-up to 0 at the end (Loshchilov & Hutter 2017, eq. 5)."""
    span = max(1, config.steps - config.warmup_steps)
    progress = min(1.0, max(0, step - config.warmup_steps) / span)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _linear_tail(step: int, config: TrainConfig) -> float:
    """1, then over the last share `tail` of the steps linearly to 0 (Hägele et al. 2024)."""
    tail = DEFAULT_TAIL if config.tail is None else config.tail
    length = tail * config.steps
    return min(1.0, max(0.0, (config.steps - step) / length)) if length else 1.0


_SCHEDULES: dict[str, Callable[[int, TrainConfig], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear_tail": _linear_tail,
}
