"""Studies small enough for tests: declared in a folder, and with results that are made up."""

import json
from collections.abc import Callable
from pathlib import Path

import yaml

from fluxsmith.studies.declaration import StudyConfig, read_study
from fluxsmith.studies.measuring import wanted
from fluxsmith.studies.planning import Arm, Plan, Run

BASE = """
data: {source: digits, image_size: 8}
text: {width: 32, hidden_size: 64, depth: 0}
model: {patch_size: 4, hidden_size: 32, num_heads: 1, depth: 1, depth_single_blocks: 1,
        axes_dim: [8, 12, 12]}
train: {steps: 12, batch_size: 4, warmup_steps: 2, log_every: 2, learning_rate: 0.002,
        checkpoint_every: 4}
sample: {steps: 2, num_samples: 4}
evaluate: {every: 6, validation_images: 8}
"""
DECLARED = {
    "hypothesis": "A quicker learning rate is better.",
    "base": "base.yaml",
    "arms": {"slow": [], "fast": ["train.learning_rate=0.01"]},
    "seeds": 2,
    "drawings": {"g1": {"guidance": 1, "num_samples": 10}},
    "primary": "validation_loss",
    "smallest_difference": 0.01,
}


def declare(folder: Path, **changes: object) -> Path:
    """study.yaml and base.yaml in a folder; None leaves a key out."""
    (folder / "base.yaml").write_text(BASE, encoding="utf-8")
    declared = {key: value for key, value in (DECLARED | changes).items() if value is not None}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(declared, sort_keys=False), encoding="utf-8")
    return path


def planned(path: Path, folder: Path) -> Plan:
    """A plan without measured seconds."""
    study = read_study(path)
    arms = {name: Arm(config_of(study, name), [], 0.01, "") for name in study.all_arms}
    return Plan(study, folder, arms)


def config_of(study: StudyConfig, arm: str):
    from fluxsmith.config import read_config

    return read_config(study.base, [*study.overrides, *study.all_arms[arm]])


def simulate(plan: Plan, value: Callable[[Run], float], results: Callable[[float], dict]) -> None:
    """Runs with made-up results: evaluation.json and metrics.jsonl."""
    for run in plan.runs:
        folder = plan.run_folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        found = {
            name: {"wanted": asked, "results": results(value(run))}
            for name, asked in wanted(plan, run).items()
        }
        whole = {"seconds": 10.0 + run.seed, "code": "abc", "drawings": found}
        (folder / "evaluation.json").write_text(json.dumps(whole), encoding="utf-8")
        records = [
            {"step": step, "loss": value(run) / step, "images_per_second": 4.0}
            for step in (2, 4, 8)
        ]
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
