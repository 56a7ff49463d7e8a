"""The evaluators: each a class in a file of its own, and a line here."""

from collections.abc import Sequence

from fluxsmith.errors import UserError
from fluxsmith.evaluation.evaluator import Evaluator, Score
from fluxsmith.evaluation.evaluators.composition import Composition
from fluxsmith.evaluation.evaluators.conditioning_gap import ConditioningGap
from fluxsmith.evaluation.evaluators.diversity import Diversity
from fluxsmith.evaluation.evaluators.edit_error import EditError
from fluxsmith.evaluation.evaluators.feature_distance import FeatureDistance
from fluxsmith.evaluation.evaluators.inception import Inception
from fluxsmith.evaluation.evaluators.likelihood import Likelihood
from fluxsmith.evaluation.evaluators.memorisation import Memorisation
from fluxsmith.evaluation.evaluators.prompt_accuracy import PromptAccuracy
from fluxsmith.evaluation.evaluators.straightness import Straightness
from fluxsmith.evaluation.evaluators.sweep import Sweep
from fluxsmith.evaluation.evaluators.validation_loss import ValidationLoss

# In the order in which they run and stand on the page.
EVALUATORS: dict[str, Evaluator] = {
    "validation_loss": ValidationLoss(),
    "conditioning_gap": ConditioningGap(),
    "prompt_accuracy": PromptAccuracy(),
    "feature_distance": FeatureDistance(),
    "memorisation": Memorisation(),
    "diversity": Diversity(),
    "straightness": Straightness(),
    "sweep": Sweep(),
    "likelihood": Likelihood(),
    "inception": Inception(),
    "composition": Composition(),
    "edit_error": EditError(),
}


def named(metrics: str | None) -> tuple[str, ...]:
    """The evaluators in a comma-separated list; `all`, or None for the usual ones."""
    if metrics is None or metrics == "all":
        wanted = ("always", "all") if metrics else ("always",)
        return tuple(name for name, each in EVALUATORS.items() if each.runs in wanted)
    names = tuple(name.strip() for name in metrics.split(","))
    for name in names:
        if name not in EVALUATORS:
            raise UserError(f"--metrics {name}: must be among {', '.join(EVALUATORS)}, or all")
    return names


def scores() -> dict[str, tuple[str, Score]]:
    """Every number that has a name: the evaluator that measures it, and where it lies."""
    return {key: (name, s) for name, each in EVALUATORS.items() for key, s in each.scores.items()}


def for_training(metrics: Sequence[str]) -> dict[str, Evaluator]:
    """Those of a config's evaluate.metrics; a UserError for one that gives no single number."""
    known = [name for name, each in EVALUATORS.items() if each.curve]
    for name in metrics:
        if name not in known:
            raise UserError(f"evaluate.metrics={name}: must be among {', '.join(known)}")
    return {name: EVALUATORS[name] for name in metrics}
