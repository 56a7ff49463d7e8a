"""What a run costs: parameters and FLOPs by its sizes, and the seconds of a step, measured."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import cache, partial
from statistics import median

import torch
from torch import nn

from fluxsmith.autoencoder import Autoencoder
from fluxsmith.config import RunConfig
from fluxsmith.config.data_section import DataConfig
from fluxsmith.data import build_loader
from fluxsmith.device import pick_device
from fluxsmith.errors import UserError
from fluxsmith.kernels.timing import turns
from fluxsmith.model.flops import forward_flops, training_flops
from fluxsmith.model.flux import Flux, FluxParams
from fluxsmith.pipeline import build_autoencoder, build_text_encoder, flux_params
from fluxsmith.text.encoder import TextEncoder
from fluxsmith.training.caption_encoding import prepare_text
from fluxsmith.training.console import ProgressConsole
from fluxsmith.training.run import build_trainer, compile_for_training
from fluxsmith.training.trainer import Trainer

BLOCK = 5  # steps measured at once


def flops(config: RunConfig, drawn: int = 0) -> int:
    """Of a whole training: the network's forward and backward passes, with as many text tokens as
    the longest caption has. And of the evaluations of the velocity for `drawn` pictures."""
    params, text, autoencoder = _built(config)
    longest = max(text.token_counts(_captions(config.data.model_dump_json())), default=1)
    tokens = longest, (config.data.image_size // autoencoder.factor // config.model.patch_size) ** 2
    trained = training_flops(params, *tokens) * config.train.batch_size * config.train.steps
    return trained + forward_flops(params, *tokens) * drawn


def parameters(config: RunConfig) -> int:
    """All that is learned: the network's and, where it is learned with it, the text encoder's."""
    params, text, _ = _built(config)
    with torch.device("meta"):
        modules = [Flux(params), *([text] if isinstance(text, nn.Module) else [])]
    return sum(p.numel() for module in modules for p in module.parameters())


def _built(config: RunConfig) -> tuple[FluxParams, TextEncoder, Autoencoder]:
    """Without weights, on torch's meta device."""
    autoencoder = build_autoencoder(config, "cpu")
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        text = build_text_encoder(config, "meta")
    return flux_params(config, autoencoder, text), text, autoencoder


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
