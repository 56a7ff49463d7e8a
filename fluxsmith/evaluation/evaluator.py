"""What an evaluator is. Everything about one metric stands in its class: how it is measured, its
numbers, its rows in the terminal, and its plots and tables on the page."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from fluxsmith.evaluation.report import Chart, Part, interval, number
from fluxsmith.evaluation.report.wording import is_number
from fluxsmith.evaluation.samples import Samples

Found = dict[str, Any]  # what an evaluator measured, plain data, ready for JSON
Section = Iterator[Part | Chart]  # what it shows on the page


class Score(NamedTuple):
    """A number that others ask for by its name: training's curves, a study."""

    path: tuple[str, ...]  # where it lies in what was found
    better: Literal["higher", "lower"]
    show: Callable[..., str] = number

    def of(self, found: Any) -> float | None:
        """None where it was not measured, or is no finite number."""
        for key in self.path:
            found = None if found is None else found.get(key)
        return float(found) if is_number(found) else None


@dataclass(frozen=True)
class Figure:
    """A number that stands for a model, in the terminal and at the head of the page."""

    name: str
    value: float
    meaning: str  # a sentence for those who meet it first
    interval: Sequence[float] | None = None
    floor: float | None = None  # what real images score in the samples' place
    show: Callable[..., str] = number

    @property
    def texts(self) -> tuple[str, str, str]:
        """The value, its interval and what real images score; "" for what there is not."""
        ends = interval(self.interval, self.show, self.value) if self.interval else ""
        real = "" if self.floor is None else self.show(self.floor, self.value)
        return self.show(self.value), ends, real


class Evaluator(ABC):
    """One metric. Objects hold nothing, so that one serves all models."""

    title: ClassVar[str] = ""  # of its section on the page
    # Whether it runs when nothing is said, with `--metrics all`, or only when named: because it
    # takes long, or needs more than the project brings.
    runs: ClassVar[Literal["always", "all", "named"]] = "named"
    needs_classes: ClassVar[bool] = False  # for the classifier
    least_test: ClassVar[int] = 0  # test images that there must be
    # Whether it measures models that are given pictures too; then those of the test images.
    given_pictures: ClassVar[bool] = False
    scores: ClassVar[Mapping[str, Score]] = {}  # its numbers by names that no other evaluator has
    curve: ClassVar[str] = ""  # the one that is drawn during training; none: not for training

    @abstractmethod
    def measure(self, samples: Samples) -> Found:
        """The figures of `samples.pipeline`. Samples are drawn when first looked at."""

    def figures(self, found: Found) -> list[Figure]:
        return []

    def rows(self, found: Found) -> list[tuple[str, str]]:
        """What the terminal shows beside the figures."""
        return []

    def section(self, found: Found, samples: Samples) -> Section:
        """Its part of the page. Where several models are compared, their charts become one and the
        rest is left out."""
        return iter(())

    def keep(self, found: Found, checkpoint: Path, weights: str) -> None:
        """Writes down what other commands need of it."""
        return

    def score(self, samples: Samples) -> float:
        """The number that is drawn as a curve during training."""
        found = self.scores[self.curve].of(self.measure(samples))
        return math.nan if found is None else found
