"""Several models on the same prompts and noise, and which of their differences are real."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fluxsmith import checkpoint as checkpoints
from fluxsmith.config.comparing import check_same
from fluxsmith.errors import UserError
from fluxsmith.evaluation.evaluators import USUAL
from fluxsmith.evaluation.frechet import GaussianStatistics, frechet_draws
from fluxsmith.evaluation.gallery import collect
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.report.compare import write_comparison
from fluxsmith.evaluation.run import describe, measure
from fluxsmith.evaluation.samples import Samples
from fluxsmith.evaluation.settings import Settings
from fluxsmith.evaluation.statistics import difference_interval, holm, paired_difference
from fluxsmith.files import make_folder
from fluxsmith.pipeline import Pipeline

LEVEL = 0.05
MARGIN = 0.1  # of the smaller Fréchet distance: what another seed of the same training may change
DATA = ("data.source", "data.image_size", "data.channels", "data.resize")


def compare(
    paths: Sequence[Path],
    *,
    num_samples: int,
    steps: int | None,
    guidance: float | None,
    seed: int,
    weights: str,
    device: str,
    command: str,
    report: Path | None = None,
) -> list[dict[str, Any]]:
    """Prints a table of differences with 95% intervals and verdicts, writes the page, and returns
    the comparisons."""
    if len(paths) < 2:
        raise UserError("compare needs two checkpoints or more")
    if report is not None:
        make_folder(report, "--report")
    files = [checkpoints.newest(path) for path in paths]
    pipelines = [Pipeline.from_checkpoint(f, device=device, weights=weights) for f in files]
    for pipeline, file in zip(pipelines[1:], files[1:], strict=True):
        check_same(pipeline.config, pipelines[0].config, DATA, str(file))
    reference = Reference(pipelines[0].config)
    names = _names(files, pipelines)

    entries, scores = [], {}
    data = GaussianStatistics.of(reference.train_features)
    for name, file, pipeline in zip(names, files, pipelines, strict=True):
        settings = Settings.like(
            pipeline.config.sample,
            num_samples=num_samples,
            steps=steps,
            guidance=guidance,
            seed=seed,
        )
        pipeline.check_drawable([""], settings.steps, settings.guidance, settings.solver)
        samples = Samples(pipeline, reference, settings)
        results = describe(pipeline, settings, file, weights, command)
        results |= measure(pipeline, reference, samples, USUAL)
        results["provenance"]["data_digest"] = reference.digest
        results["name"] = name
        entries.append((results, collect(reference, samples, results)))
        right = (samples.seen == samples.labels).double()
        scores[name] = (right, frechet_draws(samples.features, data, seed))
    found = comparisons(scores, seed)
    Console().print(_table(found))
    if report is not None:
        page = write_comparison(entries, found, report)
        Console().print(f"report  {page}", markup=False, highlight=False, soft_wrap=True)
    return found


def comparisons(scores: dict[str, tuple[Tensor, Tensor]], seed: int) -> list[dict[str, Any]]:
    """Every pair of models in prompt accuracy (paired by prompt and noise, McNemar's exact test)
    and Fréchet distance (bootstrap draws of the same rows; p is that of differing by more than
    `MARGIN`), p values corrected for their number.

    `scores`: by name, the 0/1 outcomes (n,) and the bootstrap draws of the distance (r,).
    """
    found = []
    for a, b in combinations(scores, 2):
        accuracy = paired_difference(scores[a][0], scores[b][0], seed)
        found.append(
            _row(
                a,
                b,
                "prompt accuracy",
                accuracy.mean,
                accuracy.low,
                accuracy.high,
                accuracy.p_value,
            )
        )
        gap = difference_interval(scores[a][1], scores[b][1])
        margin = MARGIN * min(float(scores[name][1].mean()) for name in (a, b))
        beyond = max(0.0, abs(gap.value) - margin)
        p = _normal_p(beyond, gap.high - gap.low)
        found.append(_row(a, b, "Fréchet distance", *gap, p))
    for row, p in zip(found, holm([row["p"] for row in found]), strict=True):
        row["p_adjusted"] = p
        row["verdict"] = _verdict(row)
    return found


def _row(
    a: str, b: str, metric: str, difference: float, low: float, high: float, p: float
) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "metric": metric,
        "difference": difference,
        "interval": (low, high),
        "p": p,
    }


def _verdict(row: dict[str, Any]) -> str:
    """What a is against b: `equal` means that no difference that counts was seen at 95%."""
    if row["p_adjusted"] >= LEVEL:
        return "equal"
    more_is_better = row["metric"] == "prompt accuracy"
    return "better" if (row["difference"] > 0) == more_is_better else "worse"


def _normal_p(value: float, width: float) -> float:
    """Two-sided, from the width of a normal 95% interval."""
    error = width / (2 * 1.959964)
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return float(torch.erfc(torch.tensor(abs(value) / error / 2**0.5, dtype=torch.float64)))


def _names(files: Sequence[Path], pipelines: Sequence[Pipeline]) -> list[str]:
    """The configs' names where they differ, else the files' paths."""
    names = [f"{p.config.name} at {p.step}" for p in pipelines]
    return names if len(set(names)) == len(names) else [str(file) for file in files]


def _table(found: list[dict[str, Any]]) -> Table:
    sheet = Table(title="differences, paired by prompt and noise")
    for heading in ("a", "b", "figure", "a - b", "95% interval", "p, corrected", "a is"):
        sheet.add_column(heading)
    for row in found:
        low, high = row["interval"]
        sheet.add_row(
            row["a"],
            row["b"],
            row["metric"],
            f"{row['difference']:+.4g}",
            f"{low:+.4g} to {high:+.4g}",
            f"{row['p_adjusted']:.3g}",
            row["verdict"],
        )
    return sheet
