"""An evaluation from a checkpoint to figures: a table, a JSON file, a report. And the scores of a
model while it trains: few figures, quickly, and the same ones every time."""

import logging
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fluxsmith.config import RunConfig
from fluxsmith.errors import UserError
from fluxsmith.evaluation.classifier import data_digest
from fluxsmith.evaluation.evaluators import EVALUATORS, for_training
from fluxsmith.evaluation.report.page import Evaluation, write_json, write_report
from fluxsmith.evaluation.samples import Reference, Samples, Settings
from fluxsmith.parallel.ranks import ALONE, Ranks
from fluxsmith.pipeline import Pipeline
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage.files import make_folder
from fluxsmith.version import __version__

log = logging.getLogger(__name__)

FORMAT = "fluxsmith-evaluation/1"


def evaluate(
    sampler: Sampler,
    settings: Settings,
    metrics: Sequence[str],
    *,
    checkpoint: Path,
    weights: str,
    command: str,
    json_file: Path | None = None,
    report: Path | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Runs the evaluators named, prints a table, and writes what was asked for. Of `ranks` all draw
    and measure, and the first prints and writes."""
    if json_file is not None:
        if json_file.is_dir():
            raise UserError(f"--json {json_file}: this is a folder; name a file in it")
        make_folder(json_file.parent, "--json")
    if report is not None:
        make_folder(report, "--report")
    if ranks.size > 1:
        ranks.expect_same({"the model": sampler.pipeline.digest(), "the command": command})
    samples = Samples(sampler, Reference(sampler.pipeline.config, ranks), settings)
    left_out = [name for name in metrics if EVALUATORS[name].needs_classes]
    if samples.reference.train.classes is None and 0 < len(left_out) < len(metrics):
        metrics = [name for name in metrics if name not in left_out]
        Console(markup=False).print(
            f"left out, for want of classes: {', '.join(left_out)}", soft_wrap=True
        )
    results = measure(samples, metrics, checkpoint=checkpoint, weights=weights, command=command)
    if report is not None:
        _ = samples.pictures  # by all, before one of them shows them
    if not ranks.first:
        return results
    Console(markup=False).print(table(results))
    if json_file is not None:
        write_json(json_file, results)
    if report is not None:
        write_report(report, Evaluation(results, samples))
    for name, found in results["results"].items():  # last: a model's folder may be read-only
        EVALUATORS[name].keep(found, checkpoint, weights)
    return results


def measure(
    samples: Samples, metrics: Sequence[str], *, checkpoint: Path, weights: str, command: str
) -> dict[str, Any]:
    """The figures of each evaluator and the seconds it took, with all that is needed to measure
    them again."""
    pipeline, settings = samples.pipeline, samples.settings
    edit = samples.edit_of(samples.rows[:1]) if samples.rows else None
    samples.sampler.plan([""], edit=edit, **settings.drawing)  # refuses what can't be drawn
    results, seconds, threads = {}, {}, torch.get_num_threads()
    faults: list[str] = []
    for name in metrics:
        began = time.perf_counter()
        try:
            if why := lacking(name, samples.reference, pipeline.config):
                raise UserError(why)
            results[name] = EVALUATORS[name].measure(samples)
        except UserError as error:
            faults.append(f"{name}: {str(error).removeprefix(f'{name}: ')}")
            if len(faults) == len(metrics):
                raise UserError(f"--metrics {faults[0]}; measure something else") from None
            Console(markup=False).print(f"left out, {faults[-1]}", soft_wrap=True)
            continue
        seconds[name] = round(time.perf_counter() - began, 1)
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
            "machine": f"{platform.machine()}, {threads} threads, {pipeline.device}",
            "data_digest": data_digest(samples.reference.train, samples.reference.test),
        },
        "results": results,
        "table": _rows(results),
        "seconds": seconds,
    }


def during_training(
    config: RunConfig, ranks: Ranks = ALONE
) -> Callable[[Pipeline], dict[str, float]] | None:
    """A function from the pipeline to its scores, which `ranks` work out together, or None where
    the config asks for none.

    Everything it draws is addressed, so it leaves the training as it was, to the bit. The data and
    the classifier are loaded now, so that what is wrong with them shows before the first step.
    """
    evaluators = for_training(config.evaluate.metrics)
    if not config.evaluate.every or not evaluators or config.evaluate.every > config.train.steps:
        return None
    reference = Reference(config, ranks, together=config.parallel.shard > 1)
    for name in list(evaluators):
        if why := lacking(name, reference, config):
            log.warning("evaluate.metrics: %s is left out: %s", name, why)
            del evaluators[name]
    if not evaluators:
        return None
    if any(evaluator.needs_classes for evaluator in evaluators.values()):
        reference.classifier.eval()
    settings = Settings.like(
        config.sample,
        num_samples=config.evaluate.num_samples,
        seed=config.seed,
        validation_images=config.evaluate.validation_images,
        trajectories=config.evaluate.num_samples,
    )

    def scores(pipeline: Pipeline) -> dict[str, float]:
        samples = Samples(Sampler(pipeline, kernels=config.train.kernels), reference, settings)
        found = {}
        for name, each in list(evaluators.items()):
            try:
                found[f"{name}/ema"] = each.score(samples)
            except UserError as error:  # the others are still to be had
                log.warning("evaluate.metrics: %s is left out from here on: %s", name, error)
                del evaluators[name]
        return found

    return scores


def lacking(name: str, reference: Reference, config: RunConfig) -> str:
    """Why an evaluator can't measure this model with these data; "" where it can."""
    evaluator, conditioning = EVALUATORS[name], config.model.conditioning
    if conditioning != "text" and not evaluator.given_pictures:
        return f"it gives no pictures, which model.conditioning={conditioning} needs"
    needed, there = evaluator.least_test, len(reference.test) if evaluator.least_test else 0
    if there < needed:
        return (
            f"it needs {needed} test images, and there are {there}; hold more of them out "
            f"(data.test_share)"
        )
    return ""


def table(results: dict[str, Any]) -> Table:
    title = f"{results['name']}, step {results['step']}, {results['weights']} weights"
    sheet = Table(title=title, show_header=False)
    for row in results["table"]:
        sheet.add_row(*row)
    return sheet


def _rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What a person reads of them: names and values."""
    found = list[tuple[str, str]]()
    for name, each in results.items():
        for figure in EVALUATORS[name].figures(each):
            value, ends, real = figure.texts
            shown = value + (f" ({ends})" if ends else "")
            found.append((figure.name, shown + (f"; real images {real}" if real else "")))
        found += EVALUATORS[name].rows(each)
    return found
