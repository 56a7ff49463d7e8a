"""Numbers that say how good a model is.

An evaluator is a function of a pipeline, a reference set and settings, and one line in
`EVALUATORS`.
"""

from typing import Any, Protocol

from fluxsmith.evaluation.prompt_accuracy import prompt_accuracy
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.settings import Settings
from fluxsmith.evaluation.validation_loss import validation_loss
from fluxsmith.pipeline import Pipeline


class Evaluator(Protocol):
    def __call__(
        self, pipeline: Pipeline, reference: Reference, settings: Settings
    ) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        ...


__all__ = ["EVALUATORS", "Evaluator", "Reference", "Settings"]

EVALUATORS: dict[str, Evaluator] = {
    "validation_loss": validation_loss,
    "prompt_accuracy": prompt_accuracy,
}
