"""The model card of an exported folder: what it is, how it was made, its scores, how it looks."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from fluxsmith import render
from fluxsmith.config import show
from fluxsmith.data.images import to_uint8
from fluxsmith.device import computing_dtype
from fluxsmith.errors import UserError
from fluxsmith.files import write_text
from fluxsmith.pipeline import Pipeline
from fluxsmith.tensorfile import read_json
from fluxsmith.version import __version__

GRID = "samples.png"
MOST_SAMPLES = 20

USE_PIPELINE = """```python
import torch
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("FOLDER", torch_dtype={dtype})  # of all its parts
image = pipe({prompt}, height={size}, width={size}, num_inference_steps={steps},
             guidance_scale={guidance}, max_sequence_length={tokens}).images[0]
```"""

USE_PARTS = (
    "diffusers' own classes draw with it in a few lines, which fluxsmith's docs/interop.md has."
)


def write_card(
    pipeline: Pipeline,
    folder: Path,
    *,
    scores: Path | None,
    samples: bool,
    whole: bool,
    dtype: torch.dtype | None = None,
) -> None:
    """README.md and the picture in it; `scores` is what `fluxsmith evaluate --json` wrote, `dtype`
    that of the exported weights where it is not the pipeline's."""
    if samples:
        draw_samples(pipeline, folder / GRID)
    parts = [
        front_matter(),
        f"# {pipeline.config.name}",
        summary(pipeline),
        f"![Samples, each with its prompt beneath]({GRID})" if samples else "",
        "## Use",
        _use(pipeline, whole, dtype),
        "## Scores",
        score_table(pipeline, scores),
        "## Config",
        f"```yaml\n{show(pipeline.config, comments=False)}```",
    ]
    write_text(folder / "README.md", "\n\n".join(part for part in parts if part) + "\n")


def front_matter() -> str:
    """What the hub reads: no licence is claimed, for weights are whoever trained them's."""
    tags = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    about = tags | {"tags": ["flux", "rectified-flow", "fluxsmith"]}
    return f"---\n{yaml.safe_dump(about, sort_keys=False)}---"


def summary(pipeline: Pipeline) -> str:
    config, network = pipeline.config, pipeline.network
    count = sum(p.numel() for p in network.parameters())
    lives = "pixels" if config.autoencoder.kind == "pixel" else "latents of FLUX.1's autoencoder"
    return (
        f"A text-to-image rectified-flow transformer with the architecture of FLUX.1: {count:,} "
        f"parameters, {config.data.image_size}x{config.data.image_size} pixels, on {lives}. "
        f"Trained on `{config.data.source}` for {pipeline.step:,} steps of "
        f"{config.train.batch_size} images; text encoder `{config.text.encoder}`. "
        f"Exported by fluxsmith {__version__}."
    )


def score_table(pipeline: Pipeline, scores: Path | None) -> str:
    """The figures of an evaluation, or a line that there are none."""
    if scores is None:
        return "None were given with the export; `fluxsmith evaluate --json` measures them."
    found = read_json(scores)
    rows = ["| measure | value |", "| --- | --- |"]
    for metric, result in found.get("results", {}).items():
        rows += [f"| {name} | {value} |" for name, value in _figures(metric, result)]
    settings = json.dumps(found.get("settings", {}))
    return "\n".join(rows) + f"\n\nMeasured with {settings}."


def check_scores(pipeline: Pipeline, scores: Path) -> None:
    """Raises a UserError where an evaluation is not of these very weights."""
    measured, own = read_json(scores).get("model"), pipeline.digest()
    if measured != own:
        raise UserError(
            f"{scores}: is an evaluation of other weights (model {measured}, these are {own}); "
            f"evaluate this checkpoint, with the same --weights"
        )


def draw_samples(pipeline: Pipeline, path: Path) -> None:
    """The grid of the card, from the data set's captions and seed 0."""
    n = min(MOST_SAMPLES, pipeline.config.sample.num_samples, len(pipeline.captions))
    prompts = [pipeline.captions[i * len(pipeline.captions) // n] for i in range(n)]
    pictures = to_uint8(pipeline.generate(prompts, seed=0))
    render.save_png(path, render.grid(pictures, prompts), {"prompts": prompts, "seed": "0"})


def _figures(name: str, result: Any) -> list[tuple[str, str]]:
    """The plain numbers among a metric's results, by dotted name; not its long lists."""
    if isinstance(result, bool) or result is None:
        return []
    if isinstance(result, (int, float)):
        return [(name, f"{result:.6g}")]
    if isinstance(result, dict):
        return [pair for key, value in result.items() for pair in _figures(f"{name}.{key}", value)]
    return []


def _use(pipeline: Pipeline, whole: bool, dtype: torch.dtype | None) -> str:
    if not whole:
        return USE_PARTS
    sample = pipeline.config.sample
    prompt = pipeline.captions[0] if pipeline.captions else "a photo of a red fox"
    return USE_PIPELINE.format(
        dtype=computing_dtype(pipeline.network.img_in.weight.dtype if dtype is None else dtype),
        prompt=json.dumps(prompt),
        size=pipeline.config.data.image_size,
        steps=sample.steps,
        guidance=sample.guidance,
        tokens=pipeline.text.max_tokens,
    )
