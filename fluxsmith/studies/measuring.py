"""How a run is measured when it is trained, and what its `evaluation.json` holds."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from fluxsmith.config import RunConfig
from fluxsmith.data.images import to_uint8
from fluxsmith.device import pick_device
from fluxsmith.errors import UserError
from fluxsmith.evaluation.evaluators import EVALUATORS
from fluxsmith.evaluation.measurement import lacking, measure
from fluxsmith.evaluation.samples import Reference, Samples, Settings
from fluxsmith.interop.open_pipeline import TextToImage
from fluxsmith.pipeline import Pipeline
from fluxsmith.sampling.generate import Sampler
from fluxsmith.sampling.render import save_png, to_pil
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.files import read_whole
from fluxsmith.studies.planning import Plan, Run
from fluxsmith.training.console import ProgressConsole
from fluxsmith.training.recorder import read_metrics

FORMAT = "fluxsmith-study-run/1"
PICTURES = 20  # kept of each run: one of each prompt, of equal noise for equal seeds


def code_digest() -> str:
    """A short digest of this package's source as it lies here, which says more than its version."""
    found = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


CODE = code_digest()  # of what runs here, though the files may be changed meanwhile


def codes(found: Mapping[str, Any]) -> list[str]:
    """The digests of the code that a run was trained and measured by, as its evaluation.json has
    them; earlier versions kept that of the last measuring."""
    told: str | list[str] = found.get("code", [])
    return [told] if isinstance(told, str) else told


def training_seconds(records: list[dict[str, float]], batch_size: int) -> float:
    """Of training alone, by a run's own records."""
    timed = [{"step": 0.0}, *(r for r in records if r.get("images_per_second"))]
    return sum(
        (after["step"] - before["step"]) * batch_size / after["images_per_second"]
        for before, after in pairwise(timed)
    )


def rehearse(plan: Plan, references: dict[str, Reference], console: ProgressConsole) -> None:
    """Measures a new model, drawing in one step, in drawings that no run has yet, so that figures
    which can't be had of these data are refused before anything is trained."""
    new = set[str](plan.study.drawings).intersection(*(undrawn(plan, run) for run in plan.runs))
    if not new:
        return
    console.report("trying whether all figures can be measured", None)
    run = plan.runs[0]
    config = plan.config_of(run)
    pipeline = Pipeline.build(config, pick_device(config.device)).eval()
    brief = {"steps": 1, "validation_images": 8, "trajectories": 4, "likelihood_images": 1}
    for name, asked in wanted(plan, run).items():
        if name not in new:
            continue
        settings = Settings(**asked["settings"] | brief)
        samples = Samples(Sampler(pipeline), _reference(references, config), settings)
        for metric in asked["metrics"]:
            if why := lacking(metric, samples.reference, config):
                raise UserError(f"{metric}: {why}")
            EVALUATORS[metric].measure(samples)


def _reference(references: dict[str, Reference], config: RunConfig) -> Reference:
    """That of the config's data, which other runs with the same data have too."""
    return references.setdefault(config.data.model_dump_json(), Reference(config))


def measured(plan: Plan, run: Run, references: dict[str, Reference]) -> dict[str, Any]:
    folder, config = plan.run_folder(run), plan.config_of(run)
    file = checkpoints.newest(folder)
    before = read_whole(folder / "evaluation.json") or {}
    drawings: dict[str, Any] = before.get("drawings", {})
    lacking = undrawn(plan, run)
    for name, asked in wanted(plan, run).items():
        if name not in lacking:
            continue
        weights = asked["weights"]
        pipeline = TextToImage.from_checkpoint(file, device=config.device, weights=weights)
        sampler = Sampler(pipeline, kernels=config.train.kernels)
        samples = Samples(sampler, _reference(references, config), Settings(**asked["settings"]))
        given = {"checkpoint": file, "weights": weights, "command": f"study {plan.study.name}"}
        found = measure(samples, asked["metrics"], **given)
        parts = {key: found[key] for key in ("results", "seconds", "provenance", "model")}
        drawings[name] = {"wanted": asked, **parts}
        prompts = list(dict.fromkeys(samples.prompts))[:PICTURES]
        strip = torch.cat(list(to_uint8(samples.draw(prompts, 0))), dim=2)  # (c, h, n w)
        save_png(folder / f"pictures-{name}.png", to_pil(strip), {"prompts": prompts})
    records = read_metrics(folder / "metrics.jsonl")
    seconds = training_seconds(records, config.train.batch_size)
    trained_by = plan.beside(run, "code")
    text = trained_by.read_text(encoding="utf-8") if trained_by.exists() else ""
    code = list(dict.fromkeys([*text.split(), *codes(before), CODE]))
    told: dict[str, Any]
    told = {"seconds": seconds, "threads": torch.get_num_threads(), "code": code}
    if getattr(config.objective, "teacher", None):
        told["teacher"] = checkpoints.load(file)["metadata"].get("teacher", "")
    return {"format": FORMAT, **run._asdict(), **told, "drawings": drawings}


def undrawn(plan: Plan, run: Run) -> list[str]:
    """The drawings that a run is still to be measured in."""
    found, lacking = read_whole(plan.run_folder(run) / "evaluation.json") or {}, []
    for name, asked in wanted(plan, run).items():
        then = as_wanted(found, name, asked)
        if not then or not set(asked["metrics"]) <= set(then["wanted"]["metrics"]):
            lacking.append(name)
    return lacking


def as_wanted(found: Mapping[str, Any], drawing: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation.json has of a drawing with these settings, maybe of other metrics; {}
    where there is none."""
    then: dict[str, Any] = found.get("drawings", {}).get(drawing, {})
    return then if then.get("wanted", {}) | {"metrics": asked["metrics"]} == asked else {}


def wanted(plan: Plan, run: Run) -> dict[str, dict[str, Any]]:
    """How each drawing is to be measured. Its noise is addressed by the run's seed: the same for
    all arms, and another for each seed, so that its chance is in the spread between seeds."""
    usual, found = plan.arms[run.arm].config.sample, {}
    for name, drawing in plan.study.drawings.items():
        given = drawing.model_dump(exclude={"weights"}) | {"seed": run.seed}
        found[name] = {
            "settings": asdict(Settings.like(usual, **given)),
            "weights": drawing.weights,
            "metrics": list(plan.study.evaluators(name)),
        }
    return found
