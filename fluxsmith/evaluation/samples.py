"""The samples of an evaluation: drawn once, in one pass, and shared by every evaluator.

Pictures are kept as uint8 in a temporary file and only their features in memory, so that 50,000
samples need no 50,000 pictures in memory.
"""

import tempfile
from collections.abc import Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from fluxsmith.data.images import to_uint8, to_unit
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.settings import Settings
from fluxsmith.pipeline import OnStep, Pipeline

BATCH = 100

T = TypeVar("T")


class Samples:
    """Every caption of the reference set equally often, or as many of them as there are samples,
    evenly spread; drawn when first looked at."""

    def __init__(self, pipeline: Pipeline, reference: Reference, settings: Settings) -> None:
        self.settings = settings
        self._pipeline = pipeline
        self._reference = reference
        drawn = evenly(reference.prompts, settings.num_samples)
        self.prompts = [caption for caption, _ in drawn]
        self.labels = torch.tensor([label for _, label in drawn])  # (n,) classes, as prompted

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def features(self) -> Tensor:
        """The judge's features, (n, d)."""
        return self._looks[0]

    @property
    def seen(self) -> Tensor:
        """The label that the judge sees in each picture, (n,)."""
        return self._looks[1]

    def pictures(self, rows: slice | list[int]) -> Tensor:
        """Some of the pictures, (k, c, h, w) uint8."""
        return torch.from_numpy(np.array(self._spool[rows]))

    def draw(self, rows: range, on_step: OnStep | None = None) -> Tensor:
        """These rows anew, (k, c, h, w) in [-1, 1], their way reported to `on_step`."""
        settings = self.settings
        return self._pipeline.generate(
            self.prompts[rows.start : rows.stop],
            steps=settings.steps,
            guidance=settings.guidance,
            solver=settings.solver,
            seed=settings.seed,
            first_index=rows.start,
            batch_size=BATCH,
            on_step=on_step,
        )

    @cached_property
    def _spool(self) -> np.ndarray:
        """The pictures in a file that vanishes with this object."""
        config = self._pipeline.config.data
        shape = (len(self), config.channels, config.image_size, config.image_size)
        with tempfile.TemporaryFile() as file:  # the mapping keeps it alive after closing
            spool = np.memmap(file, dtype=np.uint8, shape=shape, mode="w+")
        for start in track(
            range(0, len(self), BATCH), description="drawing samples", transient=True
        ):
            rows = range(start, min(start + BATCH, len(self)))
            spool[rows.start : rows.stop] = to_uint8(self.draw(rows)).numpy()
        return spool

    @cached_property
    def _looks(self) -> tuple[Tensor, Tensor]:
        judge = self._reference.judge
        features, seen = [], []
        for start in range(0, len(self), BATCH):
            found = judge.look(to_unit(self.pictures(slice(start, start + BATCH))))
            features.append(found[0])
            seen.append(found[1])
        return torch.cat(features), torch.cat(seen)


def evenly(items: Sequence[T], n: int) -> list[T]:
    """n of the items, evenly spread; all in turn, again and again, where they are fewer."""
    there = len(items)
    return [items[i * there // n] if n < there else items[i % there] for i in range(n)]
