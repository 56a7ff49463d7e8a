"""What this machine makes of a training step: its seconds, and the memory that is lost between
tensors. Both are measured on the network itself or, where it is large, on one of fewer blocks."""

from functools import partial
from statistics import median
from typing import NamedTuple

import torch

from fluxsmith.config import RunConfig
from fluxsmith.data.loader import Batch
from fluxsmith.device import autocast, resident_memory
from fluxsmith.kernels.memory import release_freed_memory
from fluxsmith.kernels.timing import matrix_products, product_flops, take_turns
from fluxsmith.planning.outline import Outline
from fluxsmith.planning.trace import traced
from fluxsmith.training.trainer import Trainer

FEW = 3, 4  # dual and single blocks up to which a network is measured whole
ROUNDS = 5
SETTLING = 3  # steps, after which the process has the memory that it keeps
MOST = {"cpu": 4e11, "cuda": 1e15}  # FLOPs of a step that is measured; else products are

Blocks = tuple[int, int]  # dual and single


class Calibration(NamedTuple):
    seconds: float  # of a step
    lost: float  # memory beside that of tensors, as a share of theirs
    measured: str  # on what, in words


def calibrate(outline: Outline, config: RunConfig, device: torch.device) -> Calibration:
    """Measures steps of a config's batches, of the outline's data."""
    blocks = config.model.depth, config.model.depth_single_blocks
    sizes = measured_sizes(blocks)
    networks = {size: _with(config, size) for size in sizes}
    largest = networks[sizes[-1]]
    if outline.flops(largest) * config.train.batch_size > MOST.get(device.type, 0):
        return _by_products(outline, config, device)
    batches = [outline.batch(one) for one in outline.likely(config.train.batch_size)]
    least = outline.trainer(_with(config, (min(blocks[0], 1), min(blocks[1], 1))), device)
    least.train_step(outline.batch([""] * config.train.accumulate))  # what comes once and stays
    del least
    release_freed_memory()
    before = resident_memory()
    trainers = {sizes[-1]: outline.trainer(largest, device)}
    for _ in range(SETTLING):
        _step(trainers[sizes[-1]], batches)
    after = resident_memory()
    held = sum(traced(outline, largest).at_most().values())
    lost = (after - before) / held - 1 if before and after and device.type == "cpu" else 0.0
    trainers |= {size: outline.trainer(networks[size], device) for size in sizes[:-1]}
    steps = {size: partial(_step, trainer, batches) for size, trainer in trainers.items()}
    taken = take_turns(steps, device, ROUNDS)
    rounds = (dict(zip(taken, one, strict=True)) for one in zip(*taken.values(), strict=True))
    found = median(extrapolated(one, blocks) for one in rounds)
    words = " and ".join("+".join(map(str, size)) for size in sizes)
    return Calibration(found, max(0.0, lost), f"steps with {words} blocks")


def measured_sizes(blocks: Blocks) -> list[Blocks]:
    """The networks that are measured for one of so many blocks: itself, or one with a block of each
    kind, one with more dual blocks and one with more single ones."""
    dual, single = blocks
    if dual <= FEW[0] and single <= FEW[1]:
        return [blocks]
    least = min(dual, 1), min(single, 1)
    more = (min(dual, FEW[0]), least[1]), (least[0], min(single, FEW[1]))
    return list(dict.fromkeys([least, *more]))


def extrapolated(seconds: dict[Blocks, float], blocks: Blocks) -> float:
    """The seconds with so many blocks, from those of `measured_sizes`: each further block adds what
    it adds there."""
    least, *more = measured_sizes(blocks)
    found = seconds[least]
    for size in more:
        for many, few, wanted in zip(size, least, blocks, strict=True):
            if many > few:
                found += (seconds[size] - seconds[least]) / (many - few) * (wanted - few)
    return found


def _by_products(outline: Outline, config: RunConfig, device: torch.device) -> Calibration:
    """As if a step were as quick as this machine's large matrix products, for what takes too long
    to be tried."""
    with autocast(device, config.train.precision):
        dtype = torch.bfloat16 if torch.is_autocast_enabled(device.type) else torch.float32
    products = matrix_products(device, dtype)
    taken = take_turns(products, device, ROUNDS)
    rate = product_flops(device) / min(median(one) for one in taken.values())
    seconds = outline.flops(config) * config.train.batch_size / rate
    return Calibration(seconds, 0.0, "large matrix products alone")


def _with(config: RunConfig, blocks: Blocks) -> RunConfig:
    fewer = dict(zip(("depth", "depth_single_blocks"), blocks, strict=True))
    return config.model_copy(update={"model": config.model.model_copy(update=fewer)})


def _step(trainer: Trainer, batches: list[Batch]) -> None:
    trainer.train_step(batches[trainer.step % len(batches)])
