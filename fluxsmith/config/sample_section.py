"""How pictures are drawn, and what is measured during training."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from fluxsmith.config.kinds import KindSection
from fluxsmith.config.types import Count, Interval, NameIn, Section, Share, SolverSteps
from fluxsmith.data.captions import composed


class SampleConfig(KindSection):
    NAME = "sample"
    CHOOSER = "schedule"
    REGISTRY = "fluxsmith.flow.solvers:SCHEDULES"
    DEFAULT = "uniform"

    solver: Annotated[str, NameIn("fluxsmith.flow.solvers:SOLVERS")] = "euler"
    """ODE solver: euler, adams2 (order 2, one evaluation a step), heun or midpoint (two)."""
    steps: SolverSteps = 20
    """Solver steps from noise to data."""
    schedule: str
    """Grid of times: uniform, shifted alike everywhere, or flux, bent for large images."""
    guidance: float = 2.0
    """Guidance scale; 1 is off, one evaluation in place of two."""
    guidance_method: Literal["cfg", "embedded", "none"] = "cfg"
    """cfg: two evaluations; embedded: the scale is an input; none: it is in a student's weights."""
    guidance_interval: list[Share] = Field(default=[0.0, 1.0], min_length=2, max_length=2)
    """The lowest and highest t at which classifier-free guidance is on."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network in sampling; bfloat16 is quicker on GPUs and less repeatable."""
    num_samples: Count = 16
    """Pictures drawn when no prompts are given, and in the grids during training."""
    prompts: Annotated[list[str], Field(min_length=1)] | None = None
    """Prompts of the grids during training, a picture each; captions of the data by default."""

    @field_validator("prompts")
    @classmethod
    def _composed(cls, prompts: list[str] | None) -> list[str] | None:
        """As they are drawn, so that what is cached of them is found."""
        return prompts and [composed(prompt) for prompt in prompts]


class EvaluateConfig(Section):
    every: Interval = 1000
    """Steps between evaluations of the averaged weights during training; 0: never."""
    metrics: list[str] = Field(default=["validation_loss"])
    """What is measured during training; `fluxsmith evaluate` measures more."""
    num_samples: Count = 200
    """Pictures drawn for the metrics that need pictures."""
    validation_images: Count = 100
    """Test images that the validation loss is taken of."""
