"""A study's answer as a page."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from numpy import asarray
from PIL import Image

from fluxsmith.evaluation.evaluator import Score
from fluxsmith.evaluation.evaluators import scores
from fluxsmith.evaluation.report import Chart, Part, Picture, Pictures, Table, interval, number
from fluxsmith.evaluation.report.page import Sections, write_page
from fluxsmith.evaluation.report.plots import drawn, logarithmic
from fluxsmith.evaluation.report.wording import p_value
from fluxsmith.storage.files import explaining
from fluxsmith.studies.figures import StudyFigure
from fluxsmith.studies.planning import Plan, Run
from fluxsmith.studies.verdicts import amount

Answer = Mapping[str, Any]


def write_study_page(plan: Plan, answer: Answer, path: Path) -> None:
    seeds = f"{len(plan.study.all_seeds)} seeds"
    facts = [answer["hypothesis"], f"{len(plan.arms)} arms, {seeds}, equal {plan.study.equal}"]
    write_page(path, str(answer["name"]), facts, list(sections_of(plan, answer)))


def sections_of(plan: Plan, answer: Answer) -> Sections:
    """All that there is to say, as parts of a page."""
    study = plan.study
    primary = next(f for f in study.all_figures() if f.name == study.primary)
    yield "answer", "The answer", list(_answer(answer, primary, study.smallest_difference))
    yield "arms", "The arms and what they cost", list(_arms(answer, study.equal))
    yield "figures", "All figures by arm", list(_figures(plan, answer))
    yield "curves", "Learning curves", list(_curves(answer))
    yield "cost", "Quality against cost", list(_cost(answer, primary))
    if pictures := list(_pictures(plan, answer, primary)):
        yield "pictures", "The same prompts and noise", pictures
    if failed := [run for run in answer["runs"] if run["state"] in ("diverged", "failed")]:
        rows = [[str(Run(run["arm"], run["seed"])), run["state"], str(run["exit_code"]),
                 run["last_line"]] for run in failed]  # fmt: skip
        table = Table("Runs without figures", ["run", "what", "exit code", "last line"], rows)
        yield "failed", "What failed", [table]
    told = [[key, str(value)] for key, value in answer["provenance"].items()]
    text = yaml.safe_dump(answer["declaration"], sort_keys=False, allow_unicode=True)
    declared = [[line] for line in text.splitlines()]
    yield "provenance", "To repeat it", [
        Table("With what, and how", ["what", "value"], told),
        Table("The declaration", ["study"], declared, folded=True),
    ]  # fmt: skip


def _answer(answer: Answer, primary: StudyFigure, smallest: float) -> Iterator[Part]:
    for arm, said in answer["verdicts"].items():
        yield f"{arm} against {answer['baseline']}, {primary.name}: {said}."
    yield from answer["notes"]
    rows = [row for row in answer["comparisons"] if row["primary"] and "mean" in row]
    if not rows:
        return
    gaps = {row["arm"]: (row["mean"], *row["interval"]) for row in rows}

    def dress(axes: Any) -> None:
        axes.axvline(0, color="black", linewidth=1)
        axes.axvspan(-smallest, smallest, color="black", alpha=0.07)

    better = f"{primary.score.better} is better"
    yield from drawn(
        Chart(
            f"{primary.name}: arm less {answer['baseline']}", {"": gaps},
            f"difference ({better})", show=primary.score.show, dress=dress, numbers=False,
            caption="Paired by seed; lines: Student's intervals, each for itself. Grey: too small "
            "to matter.",
        )
    )  # fmt: skip
    yield _comparisons(
        "The primary figure; p corrected for the number of arms (Holm)", answer, True
    )


def _comparisons(caption: str, answer: Answer, primary: bool) -> Table:
    rows = []
    for row in answer["comparisons"]:
        if row["primary"] is primary and "mean" in row:
            score, scale = _score(row["figure"]), max(map(abs, (row["mean"], *row["interval"])))
            ps = [p_value(row[key]) if "p_adjusted" in row else "–" for key in ("p", "p_adjusted")]
            rows.append([
                f"{row['figure']}: {row['arm']}",
                amount(score, row["mean"], scale=scale, sign=True),
                amount(score, *row["interval"], sign=True), *ps,
                amount(score, row["visible"]) if "p_adjusted" in row else "–", str(row["seeds"]),
            ])  # fmt: skip
    head = ["figure", "difference", "interval", "p", "p, corrected", "smallest visible", "seeds"]
    return Table(caption, head, rows)


def _arms(answer: Answer, equal: str) -> Iterator[Part]:
    rows = []
    for name, arm in answer["arms"].items():
        seconds = arm["seconds"]
        took = number(float(seconds["value"]), 100.0) if seconds else "–"
        states = ", ".join(f"{count} {state}" for state, count in arm["states"].items())
        what = f"{name}: {' '.join(arm['overrides']) or 'the base'}"
        rows.append([what, " ".join(arm["fitted"]) or "–", number(arm["steps"]),
                     number(arm["parameters"]), f"{arm['flops']:.3g}", took, states])  # fmt: skip
    head = ["arm", "fitted", "steps", "parameters", "FLOPs", "seconds", "runs"]
    yield f"Held equal: {equal}. Seconds are those of training alone, by the runs' own records."
    yield Table("A run of each arm", head, rows)


def _figures(plan: Plan, answer: Answer) -> Iterator[Part]:
    for name, figure in answer["figures"].items():
        means = {arm: _ends(each) for arm, each in figure["means"].items()}
        if not means:
            continue
        of_runs = [
            (list(means).index(run["arm"]), run["figures"][name])
            for run in answer["runs"]
            if name in run["figures"]
        ]

        def dress(axes: Any, points: list[tuple[int, float]] = of_runs) -> None:
            axes.plot(*reversed(tuple(zip(*points, strict=True))), "k.", markersize=4, alpha=0.4)

        kind = "primary" if figure["primary"] else "exploratory"
        caption = f"{kind}; {figure['better']} is better. Dots: runs; lines: intervals over seeds."
        chart = Chart(name, {"": means}, name, show=_score(name).show, dress=dress, caption=caption)
        yield from drawn(chart)
    if len(answer["figures"]) > 1:
        yield _comparisons("Exploratory figures; p corrected for all of them (Holm)", answer, False)
    for drawing, numbers in answer["measured"].items():
        head = ["figure", *answer["arms"]]
        rows = [
            [name, *(_cell(name, of.get(arm)) for arm in answer["arms"])]
            for name, of in numbers.items()
        ]
        yield Table(f"All that was measured: {drawing}", head, rows, folded=True)


def _ends(of: Mapping[str, Any]) -> tuple[float, ...]:
    """A mean and the ends of its interval, which one seed has not."""
    return of["value"], *(of["interval"] or (of["value"], of["value"]))


def _cell(name: str, of: Mapping[str, Any] | None) -> str:
    if of is None:
        return "–"
    show, ends = _score(name).show, of["interval"]
    return show(of["value"]) + (f" ({interval(ends, show, of['value'])})" if ends else "")


def _curves(answer: Answer) -> Iterator[Part]:
    for key, arms in answer["curves"].items():
        series = {
            arm: {int(step): rest for step, *rest in curve} for arm, curve in arms.items() if curve
        }
        if not series:
            continue
        name = key.removesuffix("/ema")
        positive = all(
            end > 0 for line in series.values() for ends in line.values() for end in ends
        )
        dress = logarithmic if "loss" in name and positive else None
        caption = "Means over seeds; bands: their intervals."
        yield from drawn(
            Chart(name, series, "step", name, caption, dress=dress, numbers=False, bands=True)
        )


def _cost(answer: Answer, primary: StudyFigure) -> Iterator[Part]:
    means = answer["figures"][primary.name]["means"]
    for what, of in {
        "training seconds": lambda arm: arm["seconds"]["value"],
        "training FLOPs": lambda arm: arm["flops"],
    }.items():
        series = {
            name: {float(of(answer["arms"][name])): _ends(each)} for name, each in means.items()
        }
        if series:
            yield from drawn(
                Chart(f"{primary.name} against {what}", series, what, primary.name,
                      show=primary.score.show, numbers=False)
            )  # fmt: skip


def _pictures(plan: Plan, answer: Answer, primary: StudyFigure) -> Iterator[Part]:
    """Of the first seed that all arms have, in the drawing that the primary figure is read from."""
    drawing, rows = primary.drawings[0], []
    done = [
        Run(run["arm"], run["seed"]) for run in answer["runs"] if drawing in run.get("scores", {})
    ]
    seed = max(plan.study.all_seeds, key=lambda s: (sum(run.seed == s for run in done), -s))
    for arm in plan.arms:
        file = plan.run_folder(Run(arm, seed)) / f"pictures-{drawing}.png"
        if Run(arm, seed) in done and file.exists():
            rows.append((arm, _cut(file, arm)))
    if rows:
        yield f"Seed {seed}, drawing {drawing}: equal noise beneath each other."
        yield Pictures(rows)


def _cut(file: Path, arm: str) -> list[Picture]:
    """The pictures of a strip of square ones."""
    with explaining(f"can't read {file}"), Image.open(file) as opened:
        pixels = torch.from_numpy(asarray(opened).copy())
    strip = pixels[None] if pixels.ndim == 2 else pixels.movedim(2, 0)  # (c, h, n w)
    return [
        Picture.of(one, f"{arm}, {i}") for i, one in enumerate(strip.split(strip.shape[1], 2), 1)
    ]


def _score(figure: str) -> Score:
    """The number that a figure's name speaks of."""
    return scores()[figure.partition("@")[0].rpartition(".")[2]][1]
