"""A training step as a CUDA graph (train.cuda_graphs)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from fluxsmith.kernels.cuda_graphs import CudaCapture, Graphed
from fluxsmith.pipeline import Pipeline
from fluxsmith.training.step import Step, TrainStep


def graphed(step_on_device: TrainStep, pipeline: Pipeline, capture: CudaCapture) -> Graphed:
    """The same steps, replayed from graphs. They have to be forgotten where the optimiser's state
    or the average gets other tensors."""

    def warm_up(step: Step) -> object:
        """Real steps, whatever the objective, after which everything is put back."""
        state = partial(_state, step_on_device, pipeline)
        optimiser = step_on_device.update.optimiser
        gpus = [pipeline.device] if pipeline.device.type == "cuda" else []
        with torch.random.fork_rng(gpus), unchanged(state, optimiser):  # dropout draws too
            step_on_device(step)
        # The graph reads these tables, which the caches may drop: so they are kept with it.
        called = pipeline, *step_on_device.objective.others
        return [table for each in called for table in each.network.rotary.tables.values()]

    return Graphed(step_on_device, warm_up, pipeline, capture, "train.cuda_graphs=true")


@contextmanager
def unchanged(
    state: Callable[[], Iterable[Tensor]], optimiser: torch.optim.Optimizer
) -> Iterator[None]:
    """Inside, steps may change the tensors of `state` and the optimiser's; then their values are
    put back, in place. State that the optimiser made inside becomes zero, as before a step."""
    before = {id(x): (x, x.detach().clone()) for x in (*state(), *_moments(optimiser))}
    try:
        yield
    finally:
        with torch.no_grad():
            for x, value in before.values():
                x.copy_(value)
            for x in _moments(optimiser):
                if id(x) not in before:
                    x.zero_()


def _state(step_on_device: TrainStep, pipeline: Pipeline) -> Iterator[Tensor]:
    for module in filter(None, (pipeline, step_on_device.objective.module)):
        yield from module.parameters()
        yield from module.buffers()
    yield from step_on_device.update.ema.weights.values()
    yield from (step_on_device.means.totals, step_on_device.guard.in_a_row)


def _moments(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    found = (value for state in optimiser.state.values() for value in state.values())
    return [value for value in found if isinstance(value, Tensor)]
