"""A model made small enough to ship: a folder with a checkpoint that holds no training state, its
weights in half precision, and a card."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.config.objective_section import FEW_STEPS
from fluxsmith.config.places import portable
from fluxsmith.data.imageset import evenly
from fluxsmith.errors import UserError
from fluxsmith.interop.card import MOST_SAMPLES, check_scores, write_card
from fluxsmith.pipeline import Pipeline
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.text.frozen import FrozenText
from fluxsmith.version import __version__

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def export_small(
    pipeline: Pipeline,
    run: Path,
    folder: Path,
    dtype: str | None,
    scores: Path | None,
    samples: bool,
) -> None:
    """Writes the model of a run into a folder: stored in the half precision that is named, else in
    the one that draws closer to float32; `scores` are of what is written, as evaluating the folder
    gives them."""
    if isinstance(pipeline.text, FrozenText) or pipeline.config.autoencoder.kind != "pixel":
        raise UserError(
            "--format fluxsmith: takes models of pixels whose text encoder was learned with them; "
            "give --format diffusers"
        )
    exact = {name: x.float() for name, x in pipeline.trained_state().items()}
    errors = drawing_errors(pipeline, exact)
    stored = dtype or min(errors, key=errors.__getitem__)
    pipeline.load_weights(_rounded(exact, HALVES[stored]), str(folder), assign=True)
    if scores is not None:
        check_scores(pipeline, scores)
    contents = {
        "format": checkpoints.FORMAT,
        "step": pipeline.step,
        "images_seen": pipeline.step * pipeline.config.train.batch_size,
        "config": _config(pipeline),
        "ema": exact,
        "metadata": {
            "fluxsmith": __version__,
            "captions": pipeline.captions,
            "autoencoder": pipeline.autoencoder.digest,
            "source": pipeline.source,
        },
    }
    path = checkpoints.checkpoint_path(folder, pipeline.step)
    checkpoints.save(path, checkpoints.without_training(contents, HALVES[stored]))
    images = pipeline.config.train.batch_size
    about: dict[str, Any] = {"stored": stored, "errors": errors, "seconds": _seconds(run, images)}
    about["command"], about["distilled"] = _command(pipeline.config)
    about["matched"] = pipeline.config.objective.kind == "distribution_matching"
    write_card(pipeline, folder, scores=scores, samples=samples, template="shipped.md.j2", **about)


def _command(config: RunConfig) -> tuple[str, bool]:
    """What trains such a model, and whether it is a student: then `distill` makes its config, and
    its name is its teacher's and what it is."""
    objective, name = config.objective, str(config.name)
    if objective.kind == "guidance_distillation":
        return f"fluxsmith distill {name.removesuffix('-dev')} --guidance", True
    if objective.kind in FEW_STEPS:
        ending, match = f"-{objective.steps}step", objective.kind == "distribution_matching"
        base = name.removesuffix("-matched").removesuffix(ending)
        return f"fluxsmith distill {base} --steps {objective.steps}" + " --match" * match, True
    return f"fluxsmith train {name}.yaml", False


def drawing_errors(pipeline: Pipeline, exact: Mapping[str, Tensor]) -> dict[str, float]:
    """How far pictures are from those of the exact weights, on average over their pixels in [-1,
    1], where the weights are rounded to each of HALVES."""
    sampler = Sampler(pipeline)
    prompts = evenly(pipeline.captions or [""], MOST_SAMPLES)

    def drawn(weights: dict[str, Tensor]) -> Tensor:
        pipeline.load_weights(weights, "these weights", assign=True)
        return sampler.generate(prompts, seed=0)

    pictures = drawn(dict(exact))
    return {
        name: float((drawn(_rounded(exact, half)) - pictures).abs().mean())
        for name, half in HALVES.items()
    }


def _rounded(weights: Mapping[str, Tensor], half: torch.dtype) -> dict[str, Tensor]:
    return {name: x.to(half).float() for name, x in weights.items()}


def _seconds(run: Path, batch_size: int) -> float | None:
    """What training took, by the speeds in its metrics.jsonl; None without one."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        return None
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    timed = [(0, 1.0)] + [(r["step"], r["images_per_second"]) for r in records if "loss" in r]
    return sum(batch_size * (b - a) / speed for (a, _), (b, speed) in pairwise(timed))


def _config(pipeline: Pipeline) -> dict[str, Any]:
    """The run's, without a path of this machine; a folder below the current one stays."""
    config = pipeline.config.model_dump()
    folder = Path(config["output_dir"])
    kept = {} if folder.is_absolute() else {"output_dir": str(folder)}
    return portable(config) | kept
