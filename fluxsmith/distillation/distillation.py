"""What all distillation has in common: a teacher, and where a student begins."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.distillation.teacher import Teacher
from fluxsmith.errors import UserError
from fluxsmith.flow.solvers import SOLVERS
from fluxsmith.interop.fit_weights import with_guidance
from fluxsmith.pipeline import Load, Pipeline
from fluxsmith.training.objective import Objective

TIME_DIGITS = 6  # of times, so that those of nested grids are equal


class Distillation(Objective):
    """An objective with a teacher. `scale` is the one that a student without a guidance input has
    in its weights."""

    def __init__(self, config: RunConfig, pipeline: Pipeline, scale: float = 1.0) -> None:
        self.config = config
        self.pipeline = pipeline
        self.scale = scale
        self.teacher = Teacher(config.objective.teacher, pipeline.device, config.train.kernels)
        self.teacher.check_student(config)
        self.teacher.share(pipeline)
        self._pictures = lru_cache(maxsize=1)(self._draw)

    def begin(self, load: Load) -> None:
        theirs = self.teacher.pipeline.state_dict()
        network = with_guidance(self.teacher.pipeline.network.state_dict(), self.config, self.scale)
        weights = {name: w for name, w in theirs.items() if not name.startswith("network.")}
        weights |= {f"network.{name}": w for name, w in network.items()}
        self.pipeline.load_weights(weights, str(self.teacher.path), load=load)

    def metadata(self) -> dict[str, Any]:
        sample = self.config.sample  # a student takes one evaluation of the network where it asks
        return {
            "teacher": self.teacher.digest,
            "method": self.config.objective.kind,
            "evaluations": SOLVERS[sample.solver].evaluations(sample.steps),
        }

    def expect(self, metadata: Mapping[str, Any], origin: str) -> None:
        if metadata.get("teacher") != self.teacher.digest:
            raise UserError(
                f"objective.teacher: {origin} learned from another than {self.teacher.path}; bring "
                f"that one back, or start again with --overwrite"
            )

    def beside(self, prompts: Sequence[str], seed: int) -> Tensor:
        """What the teacher draws of the same noise, at the scale that the student is shown at."""
        sample = self.config.sample
        embedded = sample.guidance_method == "embedded"
        return self._pictures(tuple(prompts), seed, sample.guidance if embedded else self.scale)

    def _draw(self, prompts: tuple[str, ...], seed: int, guidance: float) -> Tensor:
        return self.teacher.pictures(prompts, seed, guidance=guidance)


def student_times(config: RunConfig, pipeline: Pipeline, steps: int) -> tuple[float, ...]:
    """The times at which a student of this config is drawn in so many steps."""
    grid = config.sample.choice(steps, pipeline.image_tokens(pipeline.latent_shape))
    return tuple(round(t, TIME_DIGITS) for t in grid.tolist())
