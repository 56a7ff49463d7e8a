"""Several models on the same prompts and noise, and which of their differences are real."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from fluxsmith.config.comparing import check_same
from fluxsmith.errors import UserError
from fluxsmith.evaluation.classifier import data_digest
from fluxsmith.evaluation.evaluators import named
from fluxsmith.evaluation.frechet import Gaussian, frechet_draws
from fluxsmith.evaluation.measurement import measure, table
from fluxsmith.evaluation.report.page import Evaluation, write_report
from fluxsmith.evaluation.samples import Reference, Samples, Settings
from fluxsmith.evaluation.statistics import difference, holm, paired_difference
from fluxsmith.interop.open_pipeline import TextToImage
from fluxsmith.parallel.ranks import ALONE, Ranks
from fluxsmith.sampling.generate import Sampler
from fluxsmith.sampling.request import not_learned
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.files import make_folder

LEVEL = 0.05
MARGIN = 0.1  # of the smaller Fréchet distance: what another seed of the same training may change
DATA = (
    "data.source", "data.image_size", "data.channels", "data.resize", "model.conditioning",
)  # fmt: skip


def compare(
    paths: Sequence[Path],
    *,
    weights: str,
    device: str,
    overrides: Sequence[str] = (),
    command: str,
    report: Path | None = None,
    ranks: Ranks = ALONE,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Prints a table of differences with 95% intervals and verdicts, writes the page, and returns
    the comparisons. `settings` are those of `Settings`, each model's own where they are None."""
    if len(paths) < 2:
        raise UserError("compare needs two checkpoints or more")
    if report is not None:
        make_folder(report, "--report")
    files = [checkpoints.newest(path) for path in paths]
    if twice := next((f for i, f in enumerate(files) if f in files[:i]), None):
        raise UserError(f"{twice}: is named twice; compare it with another model")
    pipelines = [TextToImage.from_checkpoint(f, device, weights, overrides) for f in files]
    for pipeline, file in zip(pipelines[1:], files[1:], strict=True):
        try:
            check_same(pipeline.config, pipelines[0].config, DATA, str(file))
        except UserError as error:
            told = str(error).partition(";")[0]
            raise UserError(f"{told}; models of the same data can be compared alone") from None
    names = [f"{pipeline.config.name} at {pipeline.step}" for pipeline in pipelines]
    if len(set(names)) < len(names):
        names = [str(file) for file in files]

    if ranks.size > 1:
        ranks.expect_same({str(f): p.digest() for f, p in zip(files, pipelines, strict=True)})
    reference = Reference(pipelines[0].config, ranks)
    if reference.train.classes is None:
        raise UserError(
            "compare needs data with classes, and the captions of these are free text; measure "
            "each with `fluxsmith evaluate` and compare what it prints"
        )
    for pipeline, file in zip(pipelines[1:], files[1:], strict=True):
        if pipeline.config.data != pipelines[0].config.data:
            other = Reference(pipeline.config, ranks)
            if data_digest(other.train, other.test) != data_digest(reference.train, reference.test):
                raise UserError(f"{file} was trained on other data than {files[0]}")
    data = Gaussian.of(reference.train_features)
    evaluations, scores = [], {}
    for name, file, pipeline in zip(names, files, pipelines, strict=True):
        own = Settings.like(pipeline.config.sample, **settings)
        asked = own.steps, own.solver, own.guidance
        if note := not_learned(pipeline.config, *asked):
            Console(stderr=True, markup=False).print(f"{name}: {note}", soft_wrap=True)
        samples = Samples(Sampler(pipeline), reference, own)
        results = measure(samples, named(None), checkpoint=file, weights=weights, command=command)
        evaluations.append(Evaluation({**results, "name": name}, samples))
        Console(markup=False).print(table(results))
        right = (samples.seen == samples.labels).double()
        scores[name] = (right, frechet_draws(samples.features, data, own.seed))
    found = comparisons(scores)
    Console(markup=False).print(_table(found))
    if report is not None and ranks.first:
        write_report(report, *evaluations, comparisons=found)
    return found


def comparisons(scores: Mapping[str, tuple[Tensor, Tensor]]) -> list[dict[str, Any]]:
    """Every pair of models in prompt accuracy (paired by prompt and noise, McNemar's exact test)
    and Fréchet distance (bootstrap draws of the same rows; p is that of differing by more than
    `MARGIN`), p values corrected for their number; `equal` says that none was seen at 95%.

    `scores`: by name, the 0/1 outcomes (n,) and the bootstrap draws of the distance (r,).
    """
    found: list[dict[str, Any]] = []
    for a, b in combinations(scores, 2):
        (right_a, draws_a), (right_b, draws_b) = scores[a], scores[b]
        margin = MARGIN * min(float(draws_a.mean()), float(draws_b.mean()))
        for metric, (estimate, p) in {
            "prompt accuracy": paired_difference(right_a, right_b),
            "Fréchet distance": difference(draws_a, draws_b, margin),
        }.items():
            gap = {"difference": estimate.value, "interval": estimate.interval, "p": p}
            found.append({"a": a, "b": b, "metric": metric, **gap})
    for row, p in zip(found, holm([row["p"] for row in found]), strict=True):
        more_is_better = row["metric"] == "prompt accuracy"
        verdict = "better" if (row["difference"] > 0) == more_is_better else "worse"
        row |= {"p_adjusted": p, "verdict": verdict if p < LEVEL else "equal"}
    return found


def _table(found: list[dict[str, Any]]) -> Table:
    headings = ("a", "b", "figure", "a - b", "95% interval", "p, corrected", "a is")
    sheet = Table(*headings, title="differences, paired by prompt and noise")
    for row in found:
        gap, ends = f"{row['difference']:+.4g}", "{:+.4g} to {:+.4g}".format(*row["interval"])
        names = row["a"], row["b"], row["metric"]
        sheet.add_row(*names, gap, ends, f"{row['p_adjusted']:.3g}", row["verdict"])
    return sheet
