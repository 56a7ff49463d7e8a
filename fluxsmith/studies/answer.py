"""A study's answer as plain data: what `study.json` holds, and what the page shows."""

import contextlib
import json
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch

from fluxsmith.evaluation.evaluators import scores
from fluxsmith.studies.analysis import compare, mean
from fluxsmith.studies.costs import flops, parameters
from fluxsmith.studies.declaration import StudyConfig
from fluxsmith.studies.equality import TOLERANCE
from fluxsmith.studies.execution import outcome
from fluxsmith.studies.measuring import codes
from fluxsmith.studies.planning import Plan, Run
from fluxsmith.studies.verdicts import verdict
from fluxsmith.training.recorder import read_metrics
from fluxsmith.version import __version__

FORMAT = "fluxsmith-study/1"
POINTS = 60  # of a learning curve

Rows = list[dict[str, Any]]


def answer(plan: Plan, command: str, before: dict[str, Any]) -> dict[str, Any]:
    """From the drawings that are there; `before` is the answer that was given last, if any."""
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
    arms = {arm: _arm(plan, arm, runs) for arm in plan.arms}
    missed = _missed(study, arms)
    looks = _looks(study, before)
    return {
        "format": FORMAT,
        "name": study.name,
        "hypothesis": study.hypothesis,
        "verdicts": {
            row["arm"]: verdict(row, *stated)
            + (f"; it had {missed[row['arm']]}" if row["arm"] in missed and "mean" in row else "")
            for row in rows
            if row["primary"]
        },
        "notes": [
            *_counted(plan, runs),
            *_absent(runs, figures),
            *(
                f"{arm} trained for {much} than {study.against} in the end, though both were "
                f"fitted to be equal."
                for arm, much in missed.items()
            ),
            *_mixed(plan, runs),
            *_looked(looks),
        ],
        "baseline": study.against,
        "arms": arms,
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
        "looks": looks,
        "declaration": study.model_dump(),
        "provenance": {
            "command": command,
            "fluxsmith": __version__,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "machine": f"{platform.machine()}, threads: {torch.get_num_threads()}",
        },
    }


def _run(plan: Plan, run: Run) -> dict[str, Any]:
    state, found, failure = outcome(plan, run)
    told = {"arm": run.arm, "seed": run.seed, "state": state, "figures": {}} | failure
    if not found:
        return told
    drawings = found["drawings"].values()
    measured = {name: each["results"] for name, each in found["drawings"].items()}
    read = {f.name: f.value(measured) for f in plan.study.all_figures()}
    return told | {
        "seconds": found["seconds"],
        "code": codes(found),
        "data": sorted({d["provenance"]["data_digest"] for d in drawings if "provenance" in d}),
        "teacher": [found["teacher"]] if "teacher" in found else [],
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
    seconds = [run["seconds"] for run in own if "seconds" in run]
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
    for state, (what, meaning) in {
        "diverged": (
            "diverged", "its figures are those of the runs that did not, which is too kind to it",
        ),
        "failed": (
            "failed", "what they lack is left out of its comparisons; the same command tries again",
        ),
        "unmeasured": (
            "are not measured in all drawings", "so this answer is preliminary",
        ),
        "missing": ("were not made", "so this answer is preliminary"),
    }.items():  # fmt: skip
        for arm in plan.arms:
            own = [run for run in runs if run["arm"] == arm]
            if seeds := [str(run["seed"]) for run in own if run["state"] == state]:
                which = f"{len(seeds)} of {len(own)} runs {what}, of seed {', '.join(seeds)}"
                yield f"{arm}: {which}; {meaning}."


def _absent(runs: Rows, figures: Iterable[str]) -> Iterator[str]:
    """Figures that runs which are done do not have."""
    done = [run for run in runs if run["state"] == "done"]
    for name in figures:
        if without := [f"{r['arm']}-{r['seed']}" for r in done if name not in r["figures"]]:
            yield f"{name}: {len(without)} runs gave no such figure ({', '.join(without)})."


def _missed(study: StudyConfig, arms: Mapping[str, Any]) -> dict[str, str]:
    """Of arms that were to take equal seconds and did not: how many more or fewer they took."""
    found, first = {}, arms[study.against]["seconds"]
    for arm, each in arms.items():
        if study.equal == "seconds" and first and each["seconds"]:
            off = each["seconds"]["value"] / first["value"] - 1
            if abs(off) > TOLERANCE:
                found[arm] = f"{abs(off):.0%} {'more' if off > 0 else 'fewer'} seconds"
    return found


def _mixed(plan: Plan, runs: Rows) -> Iterator[str]:
    """Runs made by different code, or of data or a teacher that changed though their config names
    the same."""
    there = [run for run in runs if "code" in run]
    if each := _counts(run["code"] for run in there):
        yield f"The runs were not all made by the same code of fluxsmith ({each})."
    for what, section in {"data": "data", "teacher": "objective"}.items():
        alike: dict[str, list[list[str]]] = {}
        for run in there:
            named = getattr(plan.arms[run["arm"]].config, section).model_dump_json()
            alike.setdefault(named, []).append(run[what])
        for each in filter(None, map(_counts, alike.values())):
            yield (
                f"The {what} changed between runs (digests: {each}), so this answer mixes them; "
                f"begin anew with --restart."
            )


def _counts(of_runs: Iterable[list[str]]) -> str:
    """How many runs have which; "" where all have the same one."""
    counted = Counter(" and ".join(each) for each in of_runs if each)
    if len(counted) < 2 and not any(" and " in each for each in counted):
        return ""
    return ", ".join(f"{count} of {each}" for each, count in counted.items())


def _looks(study: StudyConfig, before: Mapping[str, Any]) -> Rows:
    """What was asked whenever an answer was given, each change of it once. Earlier versions kept
    the number of seeds alone."""
    seen, now = before.get("looks", []), _asked(study)
    if seen and isinstance(seen[-1], int):
        seen = [{"seeds": n} for n in seen]
        with contextlib.suppress(KeyError, ValueError):  # it asked for what is no more
            seen[-1] = _asked(StudyConfig(**before["declaration"]))
    return [*seen, *([] if seen and seen[-1] == now else [now])]


def _asked(study: StudyConfig) -> dict[str, Any]:
    """What the primary figure's p value depends on."""
    seeds, (primary, *_) = study.all_seeds, study.all_figures()
    return {
        "seeds": len(seeds) if seeds == list(range(len(seeds))) else seeds,
        "primary": study.primary,
        "smallest_difference": study.smallest_difference,
        "alpha": study.alpha,
        "baseline": study.against,
        "drawings": {
            name: study.drawings[name].model_dump(exclude_defaults=True)
            for name in primary.drawings
        },
    }


def _looked(looks: Rows) -> Iterator[str]:
    """A warning where the question was changed after an answer had been seen."""
    changed = []
    for key in looks[-1]:
        values = dict.fromkeys(json.dumps(look[key]) for look in looks if key in look)
        if len(values) > 1:
            changed.append(f"{key} ({', then '.join(values)})")
    if changed:
        yield (
            f"Changed after an answer had been seen: {', '.join(changed)}. p values then promise "
            f"more than they should. Take them for a hint, and repeat with new seeds."
        )


def _measured(plan: Plan, runs: Rows) -> dict[str, dict[str, dict[str, Any]]]:
    """By drawing and number: each arm's mean over seeds."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for drawing in plan.study.drawings:
        done = [
            (run["arm"], run["scores"][drawing]) for run in runs if drawing in run.get("scores", {})
        ]
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
        done = [run for run in runs if run["arm"] == arm and "seconds" in run]
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
