"""Scores of a model while it trains: few figures, quickly, and the same ones every time."""

from collections.abc import Callable

from fluxsmith.config import RunConfig
from fluxsmith.evaluation.evaluators import EVALUATORS
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.samples import Samples
from fluxsmith.evaluation.settings import Settings
from fluxsmith.pipeline import Pipeline

# The figure of each evaluator that a curve is drawn of.
HEADLINES = {
    "validation_loss": lambda found: found["grids"]["(i+1/2)/8"]["mean"],
    "prompt_accuracy": lambda found: found["accuracy"],
    "diversity": lambda found: found["overall"],
    "straightness": lambda found: found["value"],
}


def during_training(config: RunConfig) -> Callable[[Pipeline], dict[str, float]] | None:
    """A function from the pipeline to its scores, or None where the config asks for none.

    Everything it draws is addressed, so it leaves the training as it was, to the bit. The data and
    the judge are loaded now, so that what is wrong with them shows before the first step.
    """
    metrics = config.evaluate.metrics
    if not config.evaluate.every or not metrics or config.evaluate.every > config.train.steps:
        return None
    reference = Reference(config)
    if metrics != ["validation_loss"]:
        reference.judge.eval()
    else:
        len(reference.test)
    settings = Settings(
        num_samples=config.evaluate.num_samples,
        steps=config.sample.steps,
        guidance=config.sample.guidance,
        solver=config.sample.solver,
        seed=config.seed,
        validation_images=config.evaluate.validation_images,
        trajectories=config.evaluate.num_samples,
    )

    def scores(pipeline: Pipeline) -> dict[str, float]:
        samples = Samples(pipeline, reference, settings)
        return {
            f"{name}/ema": HEADLINES[name](EVALUATORS[name](pipeline, reference, samples))
            for name in metrics
        }

    return scores
