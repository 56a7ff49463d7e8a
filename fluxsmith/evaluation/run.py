"""An evaluation from a checkpoint to figures: a table, a JSON file, a report."""

import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fluxsmith.errors import UserError
from fluxsmith.evaluation.cheapest import keep_cheapest
from fluxsmith.evaluation.evaluators import EVALUATORS, without_judge
from fluxsmith.evaluation.gallery import collect
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.report.page import write_report
from fluxsmith.evaluation.samples import Samples
from fluxsmith.evaluation.settings import Settings
from fluxsmith.evaluation.table import table
from fluxsmith.files import make_folder, write_text
from fluxsmith.pipeline import Pipeline
from fluxsmith.version import __version__

FORMAT = "fluxsmith-evaluation/1"


def evaluate(
    pipeline: Pipeline,
    settings: Settings,
    metrics: Sequence[str],
    *,
    checkpoint: Path,
    weights: str,
    command: str,
    json_file: Path | None = None,
    report: Path | None = None,
) -> dict[str, Any]:
    """Runs the evaluators named, prints a table, and writes what was asked for."""
    check(pipeline, settings, json_file, report)
    reference = Reference(pipeline.config)
    if reference.train.classes is None:
        metrics = _without_judge(metrics)
    samples = Samples(pipeline, reference, settings)
    results = describe(pipeline, settings, checkpoint, weights, command)
    results |= measure(pipeline, reference, samples, metrics)
    results["provenance"]["data_digest"] = reference.digest
    Console().print(table(results))
    if "sweep" in results["results"]:
        keep_cheapest(checkpoint, weights, results["results"]["sweep"]["cheapest"])
    if json_file is not None:
        write_text(json_file, json.dumps(results, indent=2) + "\n")
    if report is not None:
        page = write_report(results, collect(reference, samples, results), report)
        Console().print(f"report  {page}", markup=False, highlight=False, soft_wrap=True)
    return results


def _without_judge(metrics: Sequence[str]) -> Sequence[str]:
    left = without_judge(metrics)
    if left_out := ", ".join(name for name in metrics if name not in left):
        Console().print(f"no classes to judge by, so left out: {left_out}", soft_wrap=True)
    return left


def check(
    pipeline: Pipeline,
    settings: Settings,
    json_file: Path | None,
    report: Path | None,
) -> None:
    """Refuses what can't work before any work is done."""
    pipeline.check_drawable([""], settings.steps, settings.guidance, settings.solver)
    if json_file is not None:
        if json_file.is_dir():
            raise UserError(f"--json {json_file}: this is a folder; name a file in it")
        make_folder(json_file.parent, "--json")
    if report is not None:
        make_folder(report, "--report")


def measure(
    pipeline: Pipeline, reference: Reference, samples: Samples, metrics: Sequence[str]
) -> dict[str, Any]:
    """The figures of each evaluator and the seconds it took."""
    results, seconds = {}, {}
    for name in metrics:
        began = time.perf_counter()
        results[name] = EVALUATORS[name](pipeline, reference, samples)
        seconds[name] = round(time.perf_counter() - began, 1)
    return {"results": results, "seconds": seconds}


def describe(
    pipeline: Pipeline, settings: Settings, checkpoint: Path, weights: str, command: str
) -> dict[str, Any]:
    """What was measured, and everything needed to measure it again."""
    return {
        "format": FORMAT,
        "name": pipeline.config.name,
        "step": pipeline.step,
        "weights": weights,
        "model": pipeline.digest(),
        "checkpoint": str(checkpoint),
        "settings": asdict(settings),
        "config": pipeline.config.model_dump(),
        "provenance": {
            "command": command,
            "fluxsmith": __version__,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
            f"{pipeline.device}",
        },
    }
