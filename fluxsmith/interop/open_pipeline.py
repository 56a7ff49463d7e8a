"""The model to draw with, from a checkpoint of ours or from a config and released weights; and
weights of any form for a new training run to start from."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from fluxsmith.config import RunConfig, read_config
from fluxsmith.device import named_dtype, pick_device
from fluxsmith.errors import UserError
from fluxsmith.interop.infer_params import check_fits
from fluxsmith.interop.read_weights import Weights, read_weights, require_text
from fluxsmith.kernels.offload import check_mode, place
from fluxsmith.pipeline import Pipeline, check_autoencoder
from fluxsmith.sampling.request import CONFIGS
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.tensor_files import SAFETENSORS
from fluxsmith.text.encoder import NULL_PROMPT
from fluxsmith.text.frozen import FrozenText


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
    is called with both before anything large is loaded: it refuses what can't be drawn, and returns
    the prompts that will be. `dtype` is the network's, by default that of the file, and bfloat16
    for fp8. `offload` is one of `offload.MODES`.
    """
    named_dtype(dtype)
    check_mode(offload)
    released = source.suffix in CONFIGS
    if released == (weights in ("ema", "model")):
        raise UserError(
            f"--weights {weights}: give a file of weights with a config, such as "
            f"configs/flux1/schnell.yaml, and ema or model with a checkpoint"
        )
    if released:
        config = read_config(source, overrides)
        return open_released(
            config,
            Path(weights),
            lambda pipeline: plan(pipeline, source),
            device=config.device if device == "auto" else device,
            dtype=dtype,
            offload=offload,
        ), source
    _refuse_bare_weights(source)
    path = checkpoints.newest(source)
    pipeline = Pipeline.from_checkpoint(path, device, weights, overrides, mapped=True)
    _encode_prompts(pipeline, plan(pipeline, path))
    _place(pipeline, pick_device(device), dtype, offload)
    return pipeline, path


def open_released(
    config: RunConfig,
    weights: Path,
    plan: Callable[[Pipeline], Sequence[str]],
    *,
    device: str = "auto",
    dtype: str | None = None,
    offload: str = "auto",
) -> Pipeline:
    """The model of a config, its network's weights from a file; otherwise as `open_pipeline`."""
    on = pick_device(device)
    pipeline = Pipeline.build(config, on, empty=True)
    known = read_weights(weights, shapes=True)
    _check_model(pipeline, known)
    pipeline.expect_text(known.metadata, known.origin)
    pipeline.step = known.step
    pipeline.captions = list(known.metadata.get("captions", []))
    _encode_prompts(pipeline, plan(pipeline))
    pipeline.load_weights(_tensors(pipeline, read_weights(weights)), known.origin, assign=True)
    pipeline.requires_grad_(False)
    _place(pipeline, on, dtype, offload)
    return pipeline.eval()


def load_initial(pipeline: Pipeline, path: str) -> None:
    """Copies network and learned text encoder from `path` (of a checkpoint its average) into a new
    model, for training to start from."""
    weights = read_weights(path)
    _check_model(pipeline, weights)
    pipeline.load_weights(_tensors(pipeline, weights), weights.origin)


def _check_model(pipeline: Pipeline, weights: Weights) -> None:
    """Raises a UserError if the weights are not those of the config's model, were trained in the
    latents of another autoencoder, or predict something else."""
    check_fits(weights.network, pipeline.network.params, weights.origin)
    check_autoencoder(pipeline.autoencoder, dict(weights.metadata), weights.origin)
    require_text(weights, pipeline.config.text.encoder)
    wanted = pipeline.config.flow.prediction
    if weights.prediction != wanted:
        raise UserError(
            f"flow.prediction={wanted}: the network in {weights.origin} predicts the "
            f"{weights.prediction}; set flow.prediction={weights.prediction}"
        )


def _tensors(pipeline: Pipeline, weights: Weights) -> dict[str, torch.Tensor]:
    """The weights under the pipeline's names."""
    learned = isinstance(pipeline.text, nn.Module)
    return {n: t for n, t in weights.tensors().items() if learned or not n.startswith("text.")}


def _encode_prompts(pipeline: Pipeline, prompts: Sequence[str]) -> None:
    """Caches the embeddings of these prompts and of the empty one, and frees frozen encoders, so
    that they take no memory beside the network."""
    text = pipeline.text
    if isinstance(text, FrozenText):
        text([*prompts, NULL_PROMPT])
        text.cache.flush()
        text.release()


def _place(pipeline: Pipeline, device: torch.device, dtype: str | None, offload: str) -> None:
    place(pipeline.network, device, named_dtype(dtype), offload)
    if isinstance(pipeline.text, nn.Module):
        pipeline.text.to(device)


def _refuse_bare_weights(source: Path) -> None:
    """Raises a UserError for a file or folder that belongs to --weights or `fluxsmith import`."""
    folder = not checkpoints.find(source) and any(source.glob("**/*.safetensors"))
    if folder or source.suffix in SAFETENSORS:
        raise UserError(
            f"{source}: holds weights, which are no checkpoint yet; give a config and these with "
            f"--weights, or turn them into one: fluxsmith import {source} NAME.pt"
        )
