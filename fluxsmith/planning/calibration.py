"""What this machine makes of a training step: its seconds, and the memory that is lost between
tensors. Both are measured on the network itself or, where it is large, on one of fewer blocks."""

import math
from functools import partial
from statistics import median
from typing import NamedTuple

import torch

from fluxsmith.config import RunConfig
from fluxsmith.data.loader import Batch
from fluxsmith.device import autocast, resident_memory
from fluxsmith.kernels.memory import release_freed_memory
from fluxsmith.kernels.timing import matrix_products, product_flops, take_turns
from fluxsmith.planning.outline import Outline, changed
from fluxsmith.planning.trace import traced
from fluxsmith.training.trainer import Trainer

FEW = 4, 6  # dual and single blocks up to which a network is measured whole
ROUNDS = 5
SETTLING = 4, 12  # steps, after which the process has the memory that it keeps; few of large ones
SETTLING_FLOPS = 4e11
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
    likely = outline.likely(config.train.batch_size)
    least = outline.trainer(_least(config), device)
    few = outline.batch([""] * (least.pieces * least.microbatches), device)
    least.train_step(few)  # what comes once and stays
    del least
    lost = {size: _lost(outline, networks[size], device, likely) for size in sizes}
    held = sum(traced(outline, config).at_most().values())
    share = max(0.0, extrapolated(lost, blocks) / held)
    trainers = {size: outline.trainer(networks[size], device) for size in sizes}
    batches = [outline.batch(one, device) for one in likely]
    steps = {size: partial(_step, trainer, batches) for size, trainer in trainers.items()}
    for step in steps.values():
        step()  # the first takes longer
    taken = take_turns(steps, device, ROUNDS)
    rounds = (dict(zip(taken, one, strict=True)) for one in zip(*taken.values(), strict=True))
    more = outline.of_a_step(config) / outline.flops(config)
    found = median(extrapolated(one, blocks) for one in rounds) * more
    words = " and ".join("+".join(map(str, size)) for size in sizes)
    return Calibration(found, share, f"steps with {words} blocks")


def _lost(
    outline: Outline, config: RunConfig, device: torch.device, captions: list[list[str]]
) -> float:
    """The bytes that a process has more than its tensors, after some steps."""
    release_freed_memory()
    before = resident_memory()
    trainer = outline.trainer(config, device)
    work = outline.flops(config) * config.train.batch_size
    for _ in range(min(SETTLING[1], max(SETTLING[0], int(SETTLING_FLOPS / work)))):
        batch = outline.batch(captions[trainer.step % len(captions)], device)
        if passes := outline.cost.passes:
            _teach(trainer, batch, passes)
        trainer.train_step(batch)
    after = resident_memory()
    if not before or not after or device.type != "cpu":
        return 0.0
    return after - before - sum(traced(outline, config).at_most().values())


@torch.no_grad()
def _teach(trainer: Trainer, batch: Batch, passes: float) -> None:
    """Forward passes of so many batches, in blocks of memory of other sizes than a step's own."""
    objective, each = trainer.objective, math.ceil(passes)
    part = batch.at(range(round(len(batch) * passes / each)))
    for _ in range(each):
        draw = torch.Generator(trainer.pipeline.device).manual_seed(0)
        objective.losses(objective.prepare(objective.draw(part, draw)))


def measured_sizes(blocks: Blocks) -> list[Blocks]:
    """The networks that are measured for one of so many blocks: itself, or one with a block of each
    kind, one with more dual blocks and one with more single ones."""
    dual, single = blocks
    if dual <= FEW[0] and single <= FEW[1]:
        return [blocks]
    least = min(dual, 1), min(single, 1)
    more = (min(dual, FEW[0]), least[1]), (least[0], min(single, FEW[1]))
    return list(dict.fromkeys([least, *more]))


def extrapolated(measured: dict[Blocks, float], blocks: Blocks) -> float:
    """Seconds or bytes with so many blocks, from those of `measured_sizes`: each further block adds
    what it adds there."""
    least, *more = measured_sizes(blocks)
    found = measured[least]
    for size in more:
        for many, few, wanted in zip(size, least, blocks, strict=True):
            if many > few:
                found += (measured[size] - measured[least]) / (many - few) * (wanted - few)
    return found


def _by_products(outline: Outline, config: RunConfig, device: torch.device) -> Calibration:
    """As if a step were as quick as this machine's large matrix products, for what takes too long
    to be tried."""
    with autocast(device, config.train.precision):
        dtype = torch.bfloat16 if torch.is_autocast_enabled(device.type) else torch.float32
    products = matrix_products(device, dtype)
    taken = take_turns(products, device, ROUNDS)
    rate = product_flops(device) / min(median(one) for one in taken.values())
    seconds = outline.computed(config) * config.train.batch_size / rate
    return Calibration(seconds, 0.0, "large matrix products alone")


def _with(config: RunConfig, blocks: Blocks) -> RunConfig:
    depth, single = blocks
    return changed(config, model={"depth": depth, "depth_single_blocks": single})


def _least(config: RunConfig) -> RunConfig:
    """With a block of each kind that there is, of one head: it leaves no room that a network finds
    again."""
    sizes = config.model
    fewer = _with(config, (min(sizes.depth, 1), min(sizes.depth_single_blocks, 1)))
    head = sizes.hidden_size // sizes.num_heads
    return changed(fewer, model={"hidden_size": head, "num_heads": 1})


def _step(trainer: Trainer, batches: list[Batch]) -> None:
    trainer.train_step(batches[trainer.step % len(batches)])
