"""The model to draw with: a checkpoint of ours, or a config and the released weights of its
network."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fluxsmith import checkpoint as checkpoints
from fluxsmith.config import read_config
from fluxsmith.errors import UserError
from fluxsmith.interop.placing import check_placing, encode_prompts, place_model
from fluxsmith.interop.released import load_released
from fluxsmith.pipeline import Pipeline
from fluxsmith.tensorfile import SAFETENSORS

CONFIGS = (".yaml", ".yml")


def open_pipeline(
    source: Path,
    plan: Callable[[Pipeline, Path], Sequence[str]],
    *,
    weights: str = "ema",
    device: str = "auto",
    dtype: str | None = None,
    offload: str = "auto",
    overrides: Sequence[str] = (),
) -> tuple[Pipeline, Path]:
    """The pipeline, and the file that it came from.

    `weights` is ema or model for a checkpoint (or a run's folder), and a path for a config. `plan`
    is called with both before anything large is loaded: it refuses what can't be drawn, and gives
    the prompts that will be.
    """
    check_placing(dtype, offload)
    if source.suffix in CONFIGS:
        if weights in ("ema", "model"):
            raise UserError(
                f"{source}: is a config; say with --weights which file brings the network's "
                f"weights, or give a checkpoint in its place"
            )
        config = read_config(source, overrides)
        pipeline = load_released(
            config,
            Path(weights),
            lambda pipeline: plan(pipeline, source),
            device=config.device if device == "auto" else device,
            dtype=dtype,
            offload=offload,
        )
        return pipeline, source
    if weights not in ("ema", "model"):
        raise UserError(
            f"--weights {weights}: must be ema or model for a checkpoint; a file of weights goes "
            f"with a config, such as configs/flux1/schnell.yaml"
        )
    _refuse_bare_weights(source)
    path = checkpoints.newest(source)

    def bring(pipeline: Pipeline, on: torch.device) -> None:
        encode_prompts(pipeline, plan(pipeline, path))
        place_model(pipeline, on, dtype, offload)

    return Pipeline.from_checkpoint(path, device, weights, overrides, bring), path


def _refuse_bare_weights(source: Path) -> None:
    """Raises a UserError for what would be right after --weights, or of `fluxsmith import`."""
    folder = source.is_dir() and any(
        (source / name).is_file()
        for name in ("model_index.json", "config.json", "transformer/config.json")
    )
    if folder or source.suffix in SAFETENSORS:
        raise UserError(
            f"{source}: holds weights, which are no checkpoint yet; give a config and these with "
            f"--weights, or turn them into one: fluxsmith import {source} NAME.pt"
        )
