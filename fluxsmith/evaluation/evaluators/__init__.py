"""The evaluators: each a function of a pipeline, a reference set and samples, and a line here.

What an evaluator gives is plain data, ready for JSON. Samples are drawn when the first evaluator
looks at them, and only then.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from fluxsmith.errors import UserError
from fluxsmith.evaluation.evaluators.composition import composition
from fluxsmith.evaluation.evaluators.diversity import diversity
from fluxsmith.evaluation.evaluators.feature_distance import feature_distance
from fluxsmith.evaluation.evaluators.inception import inception
from fluxsmith.evaluation.evaluators.likelihood import likelihood
from fluxsmith.evaluation.evaluators.memorisation import memorisation
from fluxsmith.evaluation.evaluators.prompt_accuracy import prompt_accuracy
from fluxsmith.evaluation.evaluators.straightness import straightness
from fluxsmith.evaluation.evaluators.sweep import sweep
from fluxsmith.evaluation.evaluators.validation_loss import validation_loss
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.samples import Samples
from fluxsmith.pipeline import Pipeline


class Evaluator(Protocol):
    def __call__(
        self, pipeline: Pipeline, reference: Reference, samples: Samples
    ) -> dict[str, Any]: ...


EVALUATORS: dict[str, Evaluator] = {
    "validation_loss": validation_loss,
    "prompt_accuracy": prompt_accuracy,
    "feature_distance": feature_distance,
    "memorisation": memorisation,
    "diversity": diversity,
    "straightness": straightness,
    "sweep": sweep,
    "likelihood": likelihood,
    "inception": inception,
    "composition": composition,
}

# Those run when nothing is said; the others cost more, or need more than the project brings.
USUAL = (
    "validation_loss",
    "prompt_accuracy",
    "feature_distance",
    "memorisation",
    "diversity",
    "straightness",
)

# Those that look through a judge, which needs classes to be trained on.
JUDGED = ("prompt_accuracy", "feature_distance", "diversity", "sweep", "composition")


def without_judge(metrics: Sequence[str]) -> tuple[str, ...]:
    """Those of the evaluators that can do without classes; a UserError where none can."""
    left = tuple(name for name in metrics if name not in JUDGED)
    if not left:
        free = ", ".join(name for name in EVALUATORS if name not in JUDGED)
        raise UserError(
            f"--metrics {','.join(metrics)}: needs classes to judge by, and the captions of this "
            f"data set are free text; choose among {free}"
        )
    return left


def named(metrics: str | None) -> tuple[str, ...]:
    """The evaluators in a comma-separated list; `all`, or None for the usual ones."""
    if metrics is None:
        return USUAL
    if metrics == "all":
        return (*USUAL, "sweep", "likelihood")
    names = tuple(name.strip() for name in metrics.split(","))
    for name in names:
        if name not in EVALUATORS:
            raise UserError(f"--metrics {name}: must be among {', '.join(EVALUATORS)}, or all")
    return names
