"""Cost against quality: solvers, steps and guidance scales, and the cheapest that will do."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from fluxsmith.config.objective_section import FEW_STEPS
from fluxsmith.errors import UserError
from fluxsmith.evaluation.evaluator import Evaluator, Found, Section
from fluxsmith.evaluation.frechet import Gaussian, frechet_distance
from fluxsmith.evaluation.report import Chart, Table, interval, number, percent
from fluxsmith.evaluation.samples import Samples, Settings
from fluxsmith.evaluation.statistics import wilson_interval
from fluxsmith.flow.guidance import within_interval
from fluxsmith.flow.path import Velocity
from fluxsmith.flow.solvers import SOLVERS
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage.files import parse_mapping, write_text

BUDGETS = (4, 8, 12, 20)  # evaluations of the velocity; each solver takes as many steps as fit in
GUIDANCE = (1.0, 1.5, 2.0, 3.0)


class Sweep(Evaluator):
    title = "Quality against steps and guidance"
    runs = "all"
    needs_classes = True
    least_test = 2

    def measure(self, samples: Samples) -> Found:
        """Prompt accuracy and Fréchet distance of every solver at the evaluation's guidance, and of
        every guidance scale at its solver and steps, with the same prompts and noise. A student of
        few steps is measured at its own, since it knows no other times.

        `cheapest` is the setting of fewest evaluations a picture that is as good as the best one
        within the tolerances of both, and, among equals, of the smallest Fréchet distance.
        """
        settings, data = samples.settings, Gaussian.of(samples.reference.train_features)
        chosen = [(settings.solver, settings.steps, settings.guidance)]
        if samples.sampler.pipeline.config.objective.kind not in FEW_STEPS:
            chosen += [(*each, settings.guidance) for each in solvers_and_steps()]
        if samples.sampler.settings.guidance_method != "none":
            chosen += [(settings.solver, settings.steps, scale) for scale in GUIDANCE]
        distinct = track([*dict.fromkeys(chosen)], "sweeping settings", transient=True)
        rows = [_measure(samples, data, *setting) for setting in distinct]
        return {
            "rows": rows,
            "tolerance": settings.sweep_tolerance,
            "frechet_tolerance": settings.sweep_frechet_tolerance,
            **choose(rows, settings),
        }

    def rows(self, found: Found) -> list[tuple[str, str]]:
        rows = [(name, ", ".join(cells)) for name, *cells in map(_cells, found["rows"])]
        return [*rows, ("Cheapest good setting (`sample --steps auto`)", _name(found["cheapest"]))]

    def section(self, found: Found, samples: Samples) -> Section:
        cheapest, best = found["cheapest"], found["best"]
        yield (
            f"The cheapest setting with accuracy within {found['tolerance']:.3g} of the best and "
            f"a Fréchet distance within {percent(found['frechet_tolerance'])} of the smallest: "
            f"{_name(cheapest)} ({cheapest['evaluations']} evaluations of the network an image; "
            f"ringed). The best: {_name(best)} ({best['evaluations']} evaluations)."
        )
        yield _chart("Prompt accuracy", "accuracy", found)
        yield _chart("Fréchet distance", "frechet", found)
        head = ["setting", "accuracy", "Fréchet distance", "evaluations", "time"]
        yield Table("Quality and cost by setting", head, [*map(_cells, found["rows"])], folded=True)

    def keep(self, found: Found, checkpoint: Path, weights: str) -> None:
        """The cheapest setting, beside the checkpoint, for `sample --steps auto`."""
        write_text(_file(checkpoint, weights), json.dumps(found["cheapest"]) + "\n")


def solvers_and_steps() -> list[tuple[str, int]]:
    """Every solver with the most steps that each budget allows."""
    return [
        (name, steps)
        for name, solver in SOLVERS.items()
        for budget in BUDGETS
        if (steps := sum(solver.evaluations(n) <= budget for n in range(1, budget + 1)))
    ]


def cheapest_setting(checkpoint: Path, weights: str) -> Found:
    """solver, steps and guidance; a UserError where no sweep of this checkpoint left any."""
    file = _file(checkpoint, weights)
    if not file.is_file():
        raise UserError(
            f"--steps auto: no sweep of {checkpoint} was made; run first `fluxsmith evaluate "
            f"{checkpoint} --weights {weights} --metrics sweep`"
        )
    try:
        found = parse_mapping(file.read_text(encoding="utf-8"))
        SOLVERS[found["solver"]]
        kinds: Found = {"solver": str, "steps": int, "guidance": float}
        return {key: kind(found[key]) for key, kind in kinds.items()}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--steps auto: {file} is damaged; make the sweep again") from None


def choose(rows: list[Found], settings: Settings) -> Found:
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
    chosen = {"best": best, "cheapest": cheapest}
    return {name: {key: row[key] for key in keys} for name, row in chosen.items()}


def evaluations_of(sampler: Sampler, solver: str, steps: int, guidance: float) -> int:
    """Of the network for a picture, counted: guidance takes two where it is on."""
    pipeline, settings, counted = sampler.pipeline, sampler.settings, 0

    def taking(n: int) -> Velocity:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            nonlocal counted
            counted += n
            return x

        return velocity

    velocity = taking(1)
    if settings.guidance_method == "cfg" and guidance not in (0, 1):
        velocity = within_interval(taking(2), velocity, *settings.guidance_interval)
    ts = sampler.schedule(steps, pipeline.image_tokens(pipeline.latent_shape))
    x = torch.zeros(1, 1, 1, 1)
    SOLVERS[solver].function(velocity, x, ts, None, lambda step: x)
    return counted


def _measure(samples: Samples, data: Gaussian, solver: str, steps: int, guidance: float) -> Found:
    began = time.perf_counter()
    setting: Found = {"solver": solver, "steps": steps, "guidance": guidance}
    settings = replace(samples.settings, num_samples=samples.settings.sweep_samples, **setting)
    drawn = Samples(samples.sampler, samples.reference, settings)
    right = int((drawn.seen == drawn.labels).sum())
    seconds = time.perf_counter() - began
    return {
        **setting,
        "evaluations": evaluations_of(samples.sampler, solver, steps, guidance),
        "accuracy": right / len(drawn),
        "interval": wilson_interval(right, len(drawn)),
        "frechet": frechet_distance(Gaussian.of(drawn.features), data),
        "seconds": round(seconds, 1),
    }


def _chart(title: str, key: str, found: Found) -> Chart:
    """Against evaluations, a line for each solver and guidance, with a ring around the cheapest."""
    series: dict[str, dict[int, tuple[float, ...]]] = {}
    for row in found["rows"]:
        line = series.setdefault(f"{row['solver']}, guidance {row['guidance']:g}", {})
        line[row["evaluations"]] = (row[key], *(row["interval"] if key == "accuracy" else ()))
    chosen = next(row for row in found["rows"] if _name(row) == _name(found["cheapest"]))

    def dress(axes: Any) -> None:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.plot(chosen["evaluations"], chosen[key], "ko", markersize=13, fillstyle="none")

    show = percent if key == "accuracy" else number
    names = f"{title} against evaluations", series, "evaluations of the network", title
    return Chart(*names, show=show, dress=dress, numbers=False)


def _name(row: Found) -> str:
    return f"{row['solver']}, {row['steps']} steps, guidance {row['guidance']:g}"


def _cells(row: Found) -> list[str]:
    ends = interval(row["interval"], percent, row["accuracy"])
    cost = number(row["frechet"]), f"{row['evaluations']} evaluations", f"{row['seconds']} s"
    return [_name(row), f"{percent(row['accuracy'])} ({ends})", *cost]


def _file(checkpoint: Path, weights: str) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}-{weights}-cheapest.json")
