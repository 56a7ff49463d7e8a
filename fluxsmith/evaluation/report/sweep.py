"""Quality against cost: what more steps and other guidance buy."""

from collections.abc import Mapping, Sequence
from typing import Any

from fluxsmith.evaluation.report import plots
from fluxsmith.evaluation.report.markup import Child, Markup, figure, folded, table, tag
from fluxsmith.evaluation.report.plots import Point
from fluxsmith.evaluation.report.wording import (
    duration,
    interval,
    is_number,
    number,
    percent,
    setting,
)

Found = Mapping[str, Any]


def sweep(found: Found) -> list[Child]:
    """Quality against evaluations, and the setting that is good enough at the least cost."""
    rows = found.get("rows") or []
    parts: list[Child] = []
    cheapest, best = found.get("cheapest"), found.get("best")
    if cheapest:
        parts.append(
            tag(
                "p",
                "The cheapest setting",
                _within(found.get("tolerance"), found.get("frechet_tolerance")),
                ": ",
                tag("strong", setting(cheapest)),
                f" ({number(cheapest.get('evaluations'))} evaluations of the network an image).",
            )
        )
    if best:
        parts.append(
            tag("p", f"The best: {setting(best)} ({number(best.get('evaluations'))} evaluations).")
        )
    drawn = [
        figure(each)
        for key, title, share in (
            ("accuracy", "Prompt accuracy", True),
            ("frechet", "Fréchet distance", False),
        )
        if (each := _against_evaluations(rows, key, title, share, cheapest))
    ]
    if drawn:
        parts.append(tag("div", drawn, class_="plots"))
    if rows:
        head = ["setting", "evaluations", "accuracy", "95% interval", "Fréchet distance", "time"]
        cells = [
            (
                setting(row),
                number(row.get("evaluations")),
                percent(row.get("accuracy")),
                interval(row.get("interval"), percent, row.get("accuracy")),
                number(row.get("frechet")),
                duration(row.get("seconds")),
            )
            for row in rows
        ]
        parts.append(folded("The numbers", table("Quality and cost by setting", head, cells)))
    return parts


def _within(tolerance: Any, frechet: Any) -> str:
    if not is_number(tolerance) or not is_number(frechet):
        return ""
    points = f"{100 * tolerance:.3g} percentage point" + ("" if tolerance == 0.01 else "s")
    return (
        f" whose accuracy is within {points} of the best, and whose "
        f"Fréchet distance is within {100 * frechet:.3g}% of the smallest"
    )


def _against_evaluations(
    rows: Sequence[Found], key: str, title: str, share: bool, cheapest: Found | None
) -> Markup | None:
    lines: dict[str, list[Point]] = {}
    chosen = None
    for row in rows:
        point = quality_point(row, key)
        if point is not None:
            lines.setdefault(setting(row, "steps"), []).append(point)
            same = ("solver", "steps", "guidance")
            if cheapest and all(row.get(each) == cheapest.get(each) for each in same):
                chosen = point
    if not lines:
        return None
    return plots.quality(
        f"sweep-{key}", f"{title} against evaluations", lines, title, chosen, share
    )


def quality_point(row: Found, key: str) -> Point | None:
    """A row of the sweep as a point over its evaluations; accuracy has an interval."""
    if not (is_number(row.get(key)) and is_number(row.get("evaluations"))):
        return None
    low, high = (row.get("interval") if key == "accuracy" else None) or (None, None)
    return Point(row["evaluations"], row[key], low, high)
