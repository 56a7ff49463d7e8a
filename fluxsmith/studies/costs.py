"""What a run costs: parameters and FLOPs by its sizes, and the seconds of a step, measured."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import cache, partial
from statistics import median

import torch

from fluxsmith.config import RunConfig
from fluxsmith.config.data_section import DataConfig
from fluxsmith.data import build_loader
from fluxsmith.device import pick_device, shapes_only
from fluxsmith.errors import UserError
from fluxsmith.kernels.timing import turns
from fluxsmith.model.flops import forward_flops
from fluxsmith.model.flux import Flux
from fluxsmith.planning.outline import Outline, autoencoder_of
from fluxsmith.training.caption_encoding import prepare_text
from fluxsmith.training.console import ProgressConsole
from fluxsmith.training.objective import Cost, objective_of
from fluxsmith.training.run import build_trainer, compile_for_training
from fluxsmith.training.trainer import Trainer

BLOCK = 5  # steps measured at once


def flops(config: RunConfig, drawn: int = 0) -> int:
    """Of a whole training, as a plan counts them: the network's forward and backward passes and,
    where an objective says its cost, what it takes beside them. And of the evaluations of the
    velocity for `drawn` pictures."""
    outline, trained = _outline(config), config.train.batch_size * config.train.steps
    return round(outline.of_a_step(config) * trained + outline.flops(config, forward_flops) * drawn)


def parameters(config: RunConfig) -> int:
    """All that is learned: the network's and, where it is learned with it, the text encoder's; of a
    LoRA its own alone."""
    outline = _outline(config)
    with shapes_only():
        network = Flux(outline.params(config))
        whole = outline.learned(config, network)
        if adapter := config.train.adapter.choice:
            whole.requires_grad_(False)
            adapter.attach(network, config.seed)
        return sum(p.numel() for p in whole.parameters() if p.requires_grad)


def _outline(config: RunConfig) -> Outline:
    autoencoder, captions = autoencoder_of(config, []), _captions(config.data.model_dump_json())
    cost = objective_of(config).cost(config) or Cost()
    return Outline(config, autoencoder, captions, 0, cost=cost)


@cache
def _captions(data: str) -> list[str]:
    """Those that are trained with, by a config's data section as JSON."""
    settings = DataConfig.model_validate_json(data)
    return build_loader(settings, 1, 0, torch.device("cpu")).captions()


def seconds_a_step(
    configs: Mapping[str, RunConfig], rounds: int, console: ProgressConsole
) -> dict[str, float]:
    """Of a training step of each arm on this machine; a UserError names an arm that can't be built.

    The arms take turns, and each is compared with the first one of its own round, so that whatever
    else the machine does meets all of them alike. The median of those ratios counts.
    """
    steps = {}
    for arm, config in configs.items():
        with naming(arm):
            steps[arm] = partial(_steps, _trainer(config))
    found: dict[str, list[float]] = {}
    device = pick_device(next(iter(configs.values())).device)
    for arm, taken, left in turns(steps, device, dict.fromkeys(steps, rounds)):
        console.report(f"measuring the seconds of a step: {arm}", left)
        found[arm] = taken
    first, *_ = found.values()
    each = {arm: median(b / a for a, b in zip(first, taken)) for arm, taken in found.items()}  # noqa: B905
    return {arm: median(first) / BLOCK * ratio for arm, ratio in each.items()}


def _trainer(config: RunConfig) -> Trainer:
    trainer = build_trainer(config, pick_device(config.device))
    prepare_text(trainer.pipeline, trainer.loader.captions())
    compile_for_training(trainer.pipeline, trainer.captions)
    return trainer


def _steps(trainer: Trainer) -> None:
    for _ in range(BLOCK):
        trainer.train_step()


@contextlib.contextmanager
def naming(arm: str) -> Iterator[None]:
    """A UserError inside names the arm."""
    try:
        yield
    except UserError as error:
        raise UserError(*(f"arms.{arm}: {line}" for line in error.args)) from None
