"""Cost against quality: solvers, steps and guidance scales, and the cheapest that will do."""

import time
from dataclasses import replace
from typing import Any

from rich.progress import track

from fluxsmith.evaluation.frechet import GaussianStatistics, frechet_distance
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.samples import Samples
from fluxsmith.evaluation.statistics import wilson_interval
from fluxsmith.pipeline import Pipeline

# (solver, steps): Heun and midpoint evaluate twice a step.
STEPS = (
    ("euler", 4),
    ("euler", 8),
    ("euler", 12),
    ("euler", 20),
    ("midpoint", 4),
    ("midpoint", 6),
    ("midpoint", 10),
    ("heun", 6),
)
GUIDANCE = (1.0, 1.5, 2.0, 3.0)
ORDER = {"euler": 1, "heun": 2, "midpoint": 2}


def sweep(pipeline: Pipeline, reference: Reference, samples: Samples) -> dict[str, Any]:
    """Prompt accuracy and Fréchet distance of every solver and step count at the evaluation's
    guidance, and of every guidance scale at its solver and steps, with the same prompts and noise.

    `cheapest` is the setting of fewest evaluations a picture whose accuracy is within the
    tolerance of the best one's, and, among equals, of the smallest Fréchet distance.
    """
    settings = samples.settings
    data = GaussianStatistics.of(reference.train_features)
    chosen = [(solver, steps, settings.guidance) for solver, steps in STEPS]
    chosen += [(settings.solver, settings.steps, scale) for scale in GUIDANCE]
    rows = [
        _measure(pipeline, reference, samples, data, *setting)
        for setting in track(
            list(dict.fromkeys(chosen)), description="sweeping settings", transient=True
        )
    ]
    return {"rows": rows, "tolerance": settings.sweep_tolerance, **choose(rows, settings)}


def choose(rows: list[dict[str, Any]], settings: Any) -> dict[str, Any]:
    """The row of best accuracy, and the cheapest one within the tolerance of it."""
    best = max(rows, key=lambda row: (row["accuracy"], -row["frechet"]))
    enough = [r for r in rows if r["accuracy"] >= best["accuracy"] - settings.sweep_tolerance]
    cheapest = min(enough, key=lambda row: (row["evaluations"], row["frechet"]))
    keys = ("solver", "steps", "guidance", "evaluations")
    return {
        "best": {key: best[key] for key in keys},
        "cheapest": {key: cheapest[key] for key in keys},
    }


def _measure(
    pipeline: Pipeline,
    reference: Reference,
    samples: Samples,
    data: GaussianStatistics,
    solver: str,
    steps: int,
    guidance: float,
) -> dict[str, Any]:
    settings = replace(
        samples.settings,
        solver=solver,
        steps=steps,
        guidance=guidance,
        num_samples=samples.settings.sweep_samples,
    )
    began = time.perf_counter()
    drawn = Samples(pipeline, reference, settings)
    right = int((drawn.seen == drawn.labels).sum())
    seconds = time.perf_counter() - began
    embedded = pipeline.config.sample.guidance_method == "embedded"
    twice = 1 if guidance == 1 or embedded else 2
    return {
        "solver": solver,
        "steps": steps,
        "guidance": guidance,
        "evaluations": steps * ORDER[solver] * twice,
        "accuracy": right / len(drawn),
        "interval": wilson_interval(right, len(drawn)),
        "frechet": frechet_distance(GaussianStatistics.of(drawn.features), data),
        "seconds": round(seconds, 1),
    }
