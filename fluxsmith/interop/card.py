"""The model card of an exported folder: what it is, how it was made, its scores, how it looks."""

import json
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from jinja2 import Environment, StrictUndefined

from fluxsmith.config import RunConfig, show
from fluxsmith.config.places import portable
from fluxsmith.data.images import to_uint8
from fluxsmith.data.imageset import evenly
from fluxsmith.device import computing_dtype
from fluxsmith.errors import UserError
from fluxsmith.interop.diffusers_folder import pipeline_class
from fluxsmith.pipeline import Pipeline
from fluxsmith.sampling import render
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage.files import read_json, write_text
from fluxsmith.storage.tensor_files import Dtype, beside
from fluxsmith.version import __version__

MOST_SAMPLES = 20


def write_card(
    pipeline: Pipeline,
    folder: Path,
    *,
    scores: Path | None,
    samples: bool,
    whole: bool = True,
    dtype: Dtype = None,
    template: str = "card.md.j2",
    **more: Any,
) -> None:
    """README.md and the picture in it; `scores` is what `fluxsmith evaluate --json` wrote, `dtype`
    that of the exported weights if it is not the pipeline's. `more` is what another template
    says."""
    if samples:
        n = min(MOST_SAMPLES, pipeline.config.sample.num_samples, len(pipeline.captions))
        prompts = evenly(pipeline.captions, n)
        grid = render.grid(to_uint8(Sampler(pipeline).generate(prompts, seed=0)), prompts)
        render.save_png(folder / "samples.png", grid, {"prompts": prompts, "seed": "0"})
    config = RunConfig.model_validate(portable(pipeline.config.model_dump()))
    environment = Environment(undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"json": partial(json.dumps, ensure_ascii=False), "shell": quote}
    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    card = environment.from_string(text).render(
        config=config,
        settings=show(config, comments=False),
        source=pipeline.source,
        step=pipeline.step,
        parameters=sum(p.numel() for p in pipeline.network.parameters()),
        version=__version__,
        samples=samples,
        whole=whole,
        diffusers=pipeline_class(pipeline.config.model.conditioning),
        guidance=_guidance(config),
        dtype=beside(dtype) or computing_dtype(pipeline.network),
        prompt=[*pipeline.captions, "a photo of a red fox"][0],
        max_tokens=pipeline.text.max_tokens,
        scores=None if scores is None else read_json(scores),
        **more,
    )
    write_text(folder / "README.md", card + "\n")


def _guidance(config: RunConfig) -> str:
    """The argument of diffusers' pipeline that guides as the samples were, after a blank; "" where
    there is none: its Fill pipeline has no classifier-free guidance."""
    scale, method = config.sample.guidance, config.sample.guidance_method
    if method == "embedded":
        return f" guidance_scale={scale},"
    if method == "cfg" and scale != 1 and config.model.conditioning != "fill":
        return f' negative_prompt="", true_cfg_scale={scale},'
    return ""


def check_scores(pipeline: Pipeline, scores: Path) -> None:
    """Raises a UserError if an evaluation is not of these very weights, or has no table."""
    found = read_json(scores)
    measured, own = found.get("model"), pipeline.digest()
    if measured != own:
        raise UserError(
            f"{scores}: is an evaluation of other weights (model {measured}, these are {own}); "
            f"evaluate this checkpoint, with the same --weights"
        )
    if "table" not in found:
        raise UserError(f"{scores}: was written by an earlier version; evaluate again")
