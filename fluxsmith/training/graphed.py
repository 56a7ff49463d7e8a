"""A training step as a CUDA graph (train.cuda_graphs)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from fluxsmith.graphs import Capture, Graphed
from fluxsmith.pipeline import Pipeline
from fluxsmith.training.descent import Descent, Step


def graphed(descent: Descent, pipeline: Pipeline, capture: Capture) -> Graphed[Step, None]:
    """The same steps, by graphs. They have to be forgotten where the optimiser's state or the
    average moves."""

    def warm_up(step: Step) -> object:
        """A step at times that are no numbers is not finite, so it leaves weights, moments and
        average as they are, and is counted nowhere."""
        with _uncounted(descent):
            pieces = [replace(one, t=torch.full_like(one.t, torch.nan)) for one in step.pieces]
            descent(replace(step, pieces=pieces))
        return pipeline.network.rotary.tables()  # which it may forget

    def mode() -> tuple[str, bool]:
        return pipeline.precision, pipeline.training

    return Graphed(descent, warm_up, pipeline, mode, capture, "train.cuda_graphs=true")


@contextmanager
def _uncounted(descent: Descent) -> Iterator[None]:
    counts = [descent.window.totals, descent.guard.in_a_row]
    before = [count.clone() for count in counts]
    try:
        yield
    finally:
        for count, value in zip(counts, before, strict=True):
            count.copy_(value)
