"""A study's answer as plain data: what `study.json` holds, and what the page shows."""

import platform
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from fluxsmith.evaluation.evaluators import scores
from fluxsmith.studies.analysis import compare, mean
from fluxsmith.studies.costs import flops, parameters
from fluxsmith.studies.equality import TOLERANCE
from fluxsmith.studies.execution import outcome
from fluxsmith.studies.planning import Plan, Run
from fluxsmith.studies.verdicts import verdict
from fluxsmith.training.recorder import read_metrics
from fluxsmith.version import __version__

FORMAT = "fluxsmith-study/1"
POINTS = 60  # of a learning curve

Rows = list[dict[str, Any]]


def answer(plan: Plan, command: str, before: dict[str, Any]) -> dict[str, Any]:
    """From the runs that are done; `before` is the answer that was given last, if any."""
    study = plan.study
    runs = [_run(plan, run) for run in plan.runs]
    figures = {f.name: f for f in study.all_figures()}
    values: dict[str, dict[str, dict[int, float]]]
    values = {name: {arm: {} for arm in plan.arms} for name in figures}
    for run in runs:
        for name, value in run["figures"].items():
            values[name][run["arm"]][run["seed"]] = value
    rows = compare(values, study.against, study.alpha, study.primary)
    score = figures[study.primary].score
    stated = score, study.against, study.alpha, study.smallest_difference, len(plan.arms) - 1
    looks = [*before.get("looks", []), len(study.all_seeds)]
    return {
        "format": FORMAT,
        "name": study.name,
        "hypothesis": study.hypothesis,
        "verdicts": {row["arm"]: verdict(row, *stated) for row in rows if row["primary"]},
        "notes": [
            *_counted(plan, runs),
            *_absent(runs, figures),
            *_slower(plan, runs),
            *_mixed(runs),
            *_looked(looks),
        ],
        "baseline": study.against,
        "arms": {arm: _arm(plan, arm, runs) for arm in plan.arms},
        "figures": {
            name: {
                "better": figure.score.better,
                "primary": name == study.primary,
                "means": {
                    arm: asdict(mean(list(of.values()), study.alpha))
                    for arm, of in values[name].items()
                    if of
                },
            }
            for name, figure in figures.items()
        },
        "comparisons": rows,
        "runs": runs,
        "measured": _measured(plan, runs),
        "curves": _curves(plan, runs),
        "looks": [n for i, n in enumerate(looks) if i == 0 or n != looks[i - 1]],
        "declaration": study.model_dump(),
        "provenance": {
            "command": command,
            "fluxsmith": __version__,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        },
    }


def _run(plan: Plan, run: Run) -> dict[str, Any]:
    state, found = outcome(plan, run)
    told = {"arm": run.arm, "seed": run.seed, "state": state, "figures": {}}
    if state != "done":
        return told | found
    measured = {name: each["results"] for name, each in found["drawings"].items()}
    read = {f.name: f.value(measured) for f in plan.study.all_figures()}
    return told | {
        "seconds": found["seconds"],
        "code": found.get("code", ""),
        "figures": {name: value for name, value in read.items() if value is not None},
        "scores": {
            drawing: {
                name: value
                for name, (evaluator, score) in scores().items()
                if (value := score.of(results.get(evaluator))) is not None
            }
            for drawing, results in measured.items()
        },
    }


def _arm(plan: Plan, name: str, runs: Rows) -> dict[str, Any]:
    arm, own = plan.arms[name], [run for run in runs if run["arm"] == name]
    seconds = [run["seconds"] for run in own if run["state"] == "done"]
    return {
        "overrides": plan.study.all_arms[name],
        "fitted": arm.fitted,
        "steps": arm.config.train.steps,
        "parameters": parameters(arm.config),
        "flops": flops(arm.config),
        "seconds": asdict(mean(seconds, plan.study.alpha)) if seconds else None,
        "states": dict(Counter(run["state"] for run in own)),
    }


def _counted(plan: Plan, runs: Rows) -> Iterator[str]:
    """Which runs have no figures, and what that means."""
    for state, meaning in {
        "diverged": "its figures are those of the runs that did not, which is too kind to it",
        "failed": "their seeds are left out of its comparisons; the same command tries them again",
        "missing": "so this answer is preliminary",
    }.items():
        for arm in plan.arms:
            own = [run for run in runs if run["arm"] == arm]
            if seeds := [str(run["seed"]) for run in own if run["state"] == state]:
                what = "were not made" if state == "missing" else state
                which = f"{len(seeds)} of {len(own)} runs {what}, of seed {', '.join(seeds)}"
                yield f"{arm}: {which}; {meaning}."


def _absent(runs: Rows, figures: Iterable[str]) -> Iterator[str]:
    """Figures that runs which are done do not have."""
    done = [run for run in runs if run["state"] == "done"]
    for name in figures:
        if without := [f"{r['arm']}-{r['seed']}" for r in done if name not in r["figures"]]:
            yield f"{name}: {len(without)} runs gave no such figure ({', '.join(without)})."


def _slower(plan: Plan, runs: Rows) -> Iterator[str]:
    """Arms that were to take equal seconds, and did not."""
    taken = {arm: _arm(plan, arm, runs)["seconds"] for arm in plan.arms}
    first = taken[plan.study.against]
    for arm, seconds in taken.items():
        if plan.study.equal == "seconds" and first and seconds:
            off = seconds["value"] / first["value"] - 1
            if abs(off) > TOLERANCE:
                yield (
                    f"{arm} trained for {off:+.1%} of {plan.study.against}'s seconds in the end, "
                    f"though both were fitted to be equal: the machine changed meanwhile."
                )


def _mixed(runs: Rows) -> Iterator[str]:
    counted = Counter(run["code"] for run in runs if run["state"] == "done")
    if len(counted) > 1:
        each = ", ".join(f"{count} by {code}" for code, count in counted.items())
        yield f"The runs were not all made by the same code of fluxsmith ({each})."


def _looked(looks: list[int]) -> list[str]:
    """A warning where seeds were added after an answer had been seen."""
    if max(looks) == min(looks):
        return []
    then = ", then ".join(str(n) for n in dict.fromkeys(looks))
    return [
        f"The number of seeds was changed after an answer had been seen ({then}): p values then "
        f"promise more than they should. Take them for a hint, and repeat with new seeds."
    ]


def _measured(plan: Plan, runs: Rows) -> dict[str, dict[str, dict[str, Any]]]:
    """By drawing and number: each arm's mean over seeds."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for drawing in plan.study.drawings:
        done = [(run["arm"], run["scores"][drawing]) for run in runs if run["state"] == "done"]
        for name in dict.fromkeys(name for _, each in done for name in each):
            found.setdefault(drawing, {})[name] = {
                arm: asdict(mean(values, plan.study.alpha))
                for arm in plan.arms
                if (values := [each[name] for of, each in done if of == arm and name in each])
            }
    return found


def _curves(plan: Plan, runs: Rows) -> dict[str, dict[str, list[list[float]]]]:
    """The loss and every score during training: by arm [step, mean, and the interval's ends]."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for arm in plan.arms:
        done = [run for run in runs if run["arm"] == arm and run["state"] == "done"]
        at: dict[str, dict[int, list[float]]] = {}
        for run in done:
            folder = plan.run_folder(Run(arm, run["seed"]))
            for record in read_metrics(folder / "metrics.jsonl"):
                for key, value in record.items():
                    if key == "loss" or key.endswith("/ema"):
                        at.setdefault(key, {}).setdefault(int(record["step"]), []).append(value)
        for key, steps in at.items():
            whole = [step for step in sorted(steps) if len(steps[step]) == len(done)]
            curve = found.setdefault(key, {}).setdefault(arm, [])
            for step in whole[:: -(-len(whole) // POINTS) or 1]:
                one = mean(steps[step], plan.study.alpha)
                curve.append([step, one.value, *(one.interval or (one.value, one.value))])
    return found
