"""A training step as a CUDA graph (train.cuda_graphs)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from fluxsmith.graphs import Capture, Graphed, places_of
from fluxsmith.pipeline import Pipeline
from fluxsmith.training.descent import Descent, Step


def graphed(descent: Descent, pipeline: Pipeline, capture: Capture) -> Graphed[Step, None]:
    """The same steps, by graphs: weights and the optimiser's state have to stay where they are."""

    def warm_up(step: Step) -> object:
        """A step at times that are no numbers is not finite, so it leaves weights, moments and
        average as they are, and is counted nowhere."""
        with _uncounted(descent):
            pieces = [replace(one, t=torch.full_like(one.t, torch.nan)) for one in step.pieces]
            descent(replace(step, pieces=pieces))
        return pipeline.network.rotary.tables()  # which it may forget

    return Graphed(descent, warm_up, places_of(pipeline), capture, pipeline.device)


@contextmanager
def _uncounted(descent: Descent) -> Iterator[None]:
    counts = [*descent.window.state_dict().values(), *descent.guard.state_dict().values()]
    before = [count.clone() for count in counts]
    try:
        yield
    finally:
        for count, value in zip(counts, before, strict=True):
            count.copy_(value)
