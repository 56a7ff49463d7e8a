"""Cost against quality: solvers, steps and guidance scales, and the cheapest that will do."""

import time
from dataclasses import replace
from typing import Any

from rich.progress import track

from fluxsmith.evaluation.frechet import GaussianStatistics, frechet_distance
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.samples import Samples
from fluxsmith.evaluation.settings import Settings
from fluxsmith.evaluation.statistics import wilson_interval
from fluxsmith.flow.solvers import evaluations
from fluxsmith.pipeline import Pipeline

# (solver, steps)
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


def sweep(pipeline: Pipeline, reference: Reference, samples: Samples) -> dict[str, Any]:
    """Prompt accuracy and Fréchet distance of every solver and step count at the evaluation's
    guidance, and of every guidance scale at its solver and steps, with the same prompts and noise.

    `cheapest` is the setting of fewest evaluations a picture that is as good as the best one
    within the tolerances of both, and, among equals, of the smallest Fréchet distance.
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
    tolerances = {
        "tolerance": settings.sweep_tolerance,
        "frechet_tolerance": settings.sweep_frechet_tolerance,
    }
    return {"rows": rows, **tolerances, **choose(rows, settings)}


def choose(rows: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """The best row, and the cheapest one that is as good within the tolerances.

    Strong guidance buys accuracy with variety, which the Fréchet distance sees; so only rows whose
    distance is near the smallest are compared in accuracy.
    """
    farthest = min(row["frechet"] for row in rows) * (1 + settings.sweep_frechet_tolerance)
    near = [row for row in rows if row["frechet"] <= farthest]
    best = max(near, key=lambda row: (row["accuracy"], -row["frechet"]))
    enough = [r for r in near if r["accuracy"] >= best["accuracy"] - settings.sweep_tolerance]
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
        "evaluations": evaluations(solver, settings.steps) * twice,
        "accuracy": right / len(drawn),
        "interval": wilson_interval(right, len(drawn)),
        "frechet": frechet_distance(GaussianStatistics.of(drawn.features), data),
        "seconds": round(seconds, 1),
    }
