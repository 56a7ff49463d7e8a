"""What students of few steps have in common: their steps, drawn by Euler's method and unguided, as
those of FLUX.1 schnell."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from fluxsmith.config import RunConfig
from fluxsmith.errors import UserError


@dataclass(frozen=True)
class FewStepSettings:
    """What their objectives are told."""

    teacher: Annotated[str, "The run or checkpoint that is learned from."]
    steps: Annotated[Literal[1, 2, 4, 8], "Steps that the student draws with."] = 4
    guidance: Annotated[float, Ge(0), "The teacher's scale, which it is to draw like."] = 2.0


def check_drawn_in_few_steps(config: RunConfig) -> None:
    """Raises a UserError where a student would be drawn in another way than it learns."""
    steps = config.objective.steps
    needed = {"steps": steps, "solver": "euler", "guidance_method": "none"}
    for key, value in needed.items():
        if (given := getattr(config.sample, key)) != value:
            raise UserError(
                f"sample.{key}={given}: a student of objective.steps={steps} draws with {value}; "
                f"set sample.{key}={value}"
            )
