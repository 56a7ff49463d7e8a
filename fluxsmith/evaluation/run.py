"""An evaluation from a pipeline to a table and a JSON file."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fluxsmith.errors import UserError
from fluxsmith.evaluation import EVALUATORS
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.settings import Settings
from fluxsmith.files import make_folder, write_text
from fluxsmith.pipeline import Pipeline


def evaluate(pipeline: Pipeline, settings: Settings, json_file: Path | None) -> dict[str, Any]:
    """Runs every evaluator, prints a table, and writes all figures to `json_file`."""
    pipeline.check_drawable([""], settings.steps, settings.guidance, settings.solver)
    if json_file is not None:
        if json_file.is_dir():
            raise UserError(f"--json {json_file}: this is a folder; name a file in it")
        make_folder(json_file.parent, "--json")
    reference = Reference(pipeline.config)
    results: dict[str, Any] = {
        "name": pipeline.config.name,
        "step": pipeline.step,
        "model": pipeline.digest(),
        "settings": asdict(settings),
    }
    for name, evaluator in EVALUATORS.items():
        results[name] = evaluator(pipeline, reference, settings)
    _print(results)
    if json_file is not None:
        write_text(json_file, json.dumps(results, indent=2) + "\n")
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
