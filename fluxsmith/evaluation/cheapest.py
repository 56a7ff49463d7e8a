"""The setting that a sweep found cheapest, kept beside the checkpoint for `sample --steps auto`."""

import json
from pathlib import Path
from typing import Any

from fluxsmith.errors import UserError
from fluxsmith.files import write_text
from fluxsmith.flow.solvers import SOLVERS
from fluxsmith.nesting import parse_json


def keep_cheapest(checkpoint: Path, weights: str, setting: dict[str, Any]) -> None:
    write_text(_file(checkpoint, weights), json.dumps(setting) + "\n")


def cheapest_setting(checkpoint: Path, weights: str) -> dict[str, Any]:
    """solver, steps and guidance; a UserError where no sweep of this checkpoint left any."""
    file = _file(checkpoint, weights)
    if not file.is_file():
        raise UserError(
            f"--steps auto: no sweep of {checkpoint} was made; run first `fluxsmith evaluate "
            f"{checkpoint} --weights {weights} --metrics sweep`"
        )
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
        solver, steps, guidance = found["solver"], int(found["steps"]), float(found["guidance"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--steps auto: {file} is damaged; make the sweep again") from None
    if solver not in SOLVERS:
        raise UserError(f"--steps auto: {file} names an unknown solver; make the sweep again")
    return {"solver": solver, "steps": steps, "guidance": guidance}


def _file(checkpoint: Path, weights: str) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}-{weights}-cheapest.json")
