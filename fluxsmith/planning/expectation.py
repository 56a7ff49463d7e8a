"""What a run that is about to begin will take: the short form of a plan."""

import gc

import torch

from fluxsmith.config import RunConfig
from fluxsmith.device import (
    free_memory,
    memory_of,
    memory_wanted,
    reset_peak_memory,
    resident_memory,
)
from fluxsmith.kernels.memory import release_freed_memory
from fluxsmith.model.flops import training_flops
from fluxsmith.planning.calibration import Calibration, calibrate
from fluxsmith.planning.forecast import Planner
from fluxsmith.planning.machine import Machine
from fluxsmith.planning.outline import Outline, changed
from fluxsmith.training.run import Expected
from fluxsmith.training.trainer import Trainer

WORTH = 5e13  # FLOPs: a shorter run is over before it matters what it takes


def expected(trainer: Trainer) -> Expected | None:
    """The memory that this process will have at the most, and, where it trains alone, the seconds
    of a step; None for a short run, or where the objective does not say its cost."""
    if trainer.objective.cost(trainer.config) is None:
        return None
    config = changed(trainer.config, parallel={"pieces": trainer.pieces})  # perhaps a resumed run's
    device = trainer.pipeline.device
    pipeline, images = trainer.pipeline, config.train.steps * config.train.batch_size
    shape = pipeline.latent_shape
    if training_flops(pipeline.network.params, 1, pipeline.image_tokens(shape)) * images < WORTH:
        return None
    resident = resident_memory() or 0
    outline = Outline.of(config, trainer.loader)
    config = outline.config
    machine = Machine(
        "this", trainer.ranks.size, memory_of(device), gpu=device.type == "cuda", here=True
    )
    planned = Planner(outline, machine)
    needed = sum(planned.memory(planned.config).values())
    alone = trainer.ranks.size == 1
    calibration = calibrated_with_room(outline, config, device, needed) if alone else None
    found = planned.memory(planned.config, calibration.lost if calibration else 0.0)
    memory = sum(found.values()) + planned.saving(found)
    if not machine.gpu:  # this process has weights, average and data already
        there = ("weights", "average", "teacher", "data set")
        memory += resident - sum(found.get(part, 0) for part in there)
    return Expected(memory, calibration.seconds if calibration else None)


def calibrated_with_room(
    outline: Outline, config: RunConfig, device: torch.device, needed: int
) -> Calibration | None:
    """What this machine makes of a step; None where there is no room to try one beside the model
    that is to be trained."""
    room = free_memory(device)
    if room is not None and needed > room:
        return None
    try:
        return calibrate(outline, config, device)
    except (RuntimeError, MemoryError) as error:
        if memory_wanted(error) is None:
            raise
    finally:
        reset_peak_memory(device)
    gc.collect()  # what was given up is in circles
    release_freed_memory()
    return None
