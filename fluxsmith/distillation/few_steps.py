"""What students of few steps have in common: their steps, and where their teacher is after each."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.distillation.distillation import Distillation, student_times
from fluxsmith.distillation.trajectories import Recipe, Trajectories
from fluxsmith.errors import UserError
from fluxsmith.pipeline import Pipeline

KEPT = 4  # states of a trajectory, at least, so that one cache serves students of 1, 2 and 4 steps


class FewSteps(Distillation):
    """A student that is drawn in `objective.steps` steps of Euler, unguided, as FLUX.1 schnell."""

    @dataclass(frozen=True)
    class Settings:
        teacher: Annotated[str, "The run or checkpoint that is learned from."]
        steps: Annotated[Literal[1, 2, 4, 8], "Steps that the student draws with."] = 4
        guidance: Annotated[float, Ge(0), "The teacher's scale."] = 2.0
        trajectories: Annotated[int, Ge(1), "Trajectories of the teacher that are made."] = 6144
        solver_steps: Annotated[int, Ge(1), "Steps of adams2 between two kept states."] = 3
        cache: Annotated[str | None, "Where they are kept; beside the teacher by default."] = None

    @classmethod
    def build(cls, config: RunConfig, pipeline: Pipeline) -> "FewSteps":
        settings = config.objective
        scale, n = settings.guidance, settings.steps
        needed = {"steps": n, "solver": "euler", "guidance_method": "none"}
        for key, value in needed.items():
            if (given := getattr(config.sample, key)) != value:
                raise UserError(
                    f"sample.{key}={given}: a student of objective.steps={n} draws with {value}; "
                    f"set sample.{key}={value}"
                )
        own = student_times(config, pipeline, n)
        kept, between = max(KEPT, n), settings.solver_steps
        times = student_times(config, pipeline, kept)
        if times[:: kept // n] != own:  # a schedule whose grids do not nest
            times, between = own, between * kept // n
        recipe = Recipe(times, between, scale, scale)
        return cls(config, pipeline, recipe, scale)

    @classmethod
    def needs_data(cls, config: RunConfig) -> bool:
        return False


def states_of_steps(batch: Trajectories, steps: int) -> tuple[Tensor, Tensor]:
    """The teacher's states before, between and after a student's steps, (b, steps + 1, c, h, w),
    and their times (b, steps + 1)."""
    every = (batch.images.shape[1] - 1) // steps  # kept states in a step
    return batch.images[:, ::every], batch.t[:, ::every]
