"""What training minimises. The trainer knows an objective by this interface alone.

A step has three parts, so that each can be done where it belongs: `draw` makes all that is random,
`prepare` does what needs the host, and `losses` is what the device does alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fluxsmith.config import RunConfig
from fluxsmith.data.loader import Batch, Loader
from fluxsmith.parallel.ranks import Ranks
from fluxsmith.pipeline import Load, Pipeline


@dataclass(frozen=True)
class Losses:
    """The losses of b images."""

    total: Tensor  # (b,), whose mean is minimised
    t: Tensor  # (b,), the time that each was taken at
    terms: Mapping[str, Tensor] = field(default_factory=dict)  # more to be recorded, (b,) by name

    def together(self, change: Callable[[Tensor], Tensor]) -> "Losses":
        """All of them changed as the rows of one tensor, (k, b) -> (k, c)."""
        total, t, *terms = change(torch.stack([self.total, self.t, *self.terms.values()]))
        return Losses(total, t, dict(zip(self.terms, terms, strict=True)))


class Example(Protocol):
    """A batch with everything random that an objective needs."""

    def split(self, parts: int) -> Sequence[Any]:
        """Equal parts of it, in order."""
        ...


@dataclass(frozen=True)
class Cost:
    """What a step takes beside the network that it trains."""

    passes: float = 0.0  # forward passes of a picture without gradients, on average
    trained: int = 0  # passes of a picture forward and backward, held until the last has begun
    teachers: int = 0  # frozen networks of the same sizes
    critics: int = 0  # trained ones


class Objective(ABC):
    """What a step minimises."""

    module: nn.Module | None = None  # what is trained beside the pipeline, and saved with it
    module_rate: float = 1.0  # its learning rate, as a multiple of train.learning_rate
    others: tuple[Pipeline, ...] = ()  # pipelines that the losses call beside the one trained
    terms: tuple[str, ...] = ()  # the names in `Losses.terms`
    # Whether the losses contain gradients of the network, as a gradient penalty does. Attention is
    # then computed by operations that torch can differentiate twice, which its fused ones are not.
    second_derivatives: bool = False
    # Whether `Losses.total` is the velocity's squared error on the pictures, which can be compared
    # with that of simpler predictions.
    of_velocity: bool = False

    # Whether it needs pictures as they are, so that their latents alone will not do.
    needs_pixels: bool = False

    @classmethod
    def needs_data(cls, config: RunConfig) -> bool:
        """Whether it trains on the config's pictures; else on what `loader` gives."""
        return True

    @classmethod
    @abstractmethod
    def build(cls, config: RunConfig, pipeline: Pipeline) -> "Objective":
        """The objective of a run, with what it needs beside the model: a teacher, a second
        network."""

    @classmethod
    def cost(cls, config: RunConfig) -> Cost | None:
        """For a plan; None where it is not known."""
        return None

    def make(self, ranks: Ranks) -> None:  # noqa: B027 (most need nothing)
        """Makes what it learns from, where that is not there yet; a call of all ranks at once."""

    def loader(self) -> Loader:
        """What it trains on where it needs no data."""
        raise NotImplementedError

    def see(self, loader: Loader) -> None:  # noqa: B027 (most see batches alone)
        """Looks at what it will be trained on."""

    def begin(self, load: Load) -> None:  # noqa: B027 (most objectives begin with what is there)
        """Gives a new model the weights that it starts from, where they are not to be random."""

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        return {}

    def expect(self, metadata: Mapping[str, Any], origin: str) -> None:  # noqa: B027
        """Raises a UserError where a checkpoint that is to be resumed says something else."""

    def beside(self, prompts: Sequence[str], seed: int) -> Tensor | None:
        """Pictures to be shown beside the model's of the same prompts and noise: (n, c, h, w)."""
        return None

    @abstractmethod
    def draw(self, batch: Batch, generator: torch.Generator) -> Example:
        """Draws what is random for a whole batch: one cut in two meets the same noise."""

    @abstractmethod
    def prepare(self, example: Any, alike: bool = False) -> Any:
        """What needs the host: images encoded, text read. Draws nothing, and has no gradient.

        Returns a dataclass of tensors on the device. With `alike`, examples of as many images and
        as long texts give tensors of equal shapes.
        """

    @abstractmethod
    def losses(self, inputs: Any) -> Losses:
        """The losses of what `prepare` gave, differentiable, without a look at any number on the
        device."""


def objective_of(config: RunConfig) -> type[Objective]:
    """The objective that a config names."""
    entry = config.objective.kinds()[config.objective.kind]
    return resolve_name(entry) if isinstance(entry, str) else entry
