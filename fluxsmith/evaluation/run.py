"""An evaluation from a pipeline to a table and a JSON file."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fluxsmith.errors import UserError
from fluxsmith.evaluation import EVALUATORS
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.settings import Settings
from fluxsmith.pipeline import Pipeline


def evaluate(pipeline: Pipeline, settings: Settings, json_file: Path | None) -> dict[str, Any]:
    """Runs every evaluator, prints a table, and writes all figures to `json_file`."""
    if json_file is not None and not json_file.parent.is_dir():
        raise UserError(f"--json {json_file}: there is no folder {json_file.parent}; make it first")
    reference = Reference(pipeline.config)
    results: dict[str, Any] = {"name": pipeline.config.name, "step": pipeline.step}
    for name, evaluator in EVALUATORS.items():
        results[name] = evaluator(pipeline, reference, settings)
    _print(results)
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def _print(results: dict[str, Any]) -> None:
    loss, accuracy = results["validation_loss"], results["prompt_accuracy"]
    low, high = accuracy["interval"]
    table = Table(title=f"{results['name']}, step {results['step']}", show_header=False)
    table.add_row("validation loss", f"{loss['mean']:.5f} over {loss['images']} images")
    table.add_row(
        "prompt accuracy",
        f"{accuracy['accuracy']:.2%} ({low:.2%} to {high:.2%}), {accuracy['samples']} samples, "
        f"{accuracy['steps']} steps, guidance {accuracy['guidance']:g}",
    )
    table.add_row("judge's accuracy", f"{accuracy['judge_test_accuracy']:.2%} on test images")
    worst = sorted(accuracy["by_caption"].items(), key=lambda item: item[1])[:3]
    table.add_row("weakest prompts", ", ".join(f"{c!r} {share:.1%}" for c, share in worst))
    Console().print(table)
