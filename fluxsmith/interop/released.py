"""A model of released weights, ready to draw: a config says what it is, files bring the weights.

In the order that needs the least memory: the prompts are encoded and the text encoders freed before
the network's weights come, and these are mapped from their file rather than read.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from fluxsmith.config import RunConfig
from fluxsmith.device import free_memory, pick_device
from fluxsmith.errors import UserError
from fluxsmith.interop.dtypes import DTYPES, check_dtype
from fluxsmith.interop.fitting import check_fits
from fluxsmith.interop.reading import read_weights, require_text
from fluxsmith.model.flux import Flux
from fluxsmith.model.streaming import stream_blocks
from fluxsmith.pipeline import Pipeline
from fluxsmith.text.encoder import NULL_PROMPT
from fluxsmith.text.frozen import FrozenText

OFFLOAD = ("auto", "blocks", "none")


def load_released(
    config: RunConfig,
    weights: Path,
    prompts: Sequence[str],
    *,
    device: str = "auto",
    dtype: str | None = None,
    offload: str = "auto",
) -> Pipeline:
    """The pipeline, with the embeddings of these prompts and of the empty one at hand.

    `dtype` is that of the network, by default the file's own, and bfloat16 for fp8 files. `offload`
    is `blocks`, `none`, or `auto`: blocks where the device's free memory is too small.
    """
    check_options(dtype, offload)
    on = pick_device(device)
    found = read_weights(weights)
    pipeline = Pipeline.shaped(config, on)
    check_fits(found.network, pipeline.network.params, found.origin)
    require_text(found, config.text.encoder)
    prepare_prompts(pipeline, prompts)
    network = pipeline.network
    network.load_state_dict(found.network, assign=True)
    network.requires_grad_(False)
    place(network, on, requested_dtype(network, dtype), offload)
    if isinstance(pipeline.text, nn.Module):  # learned with the network
        pipeline.text.load_state_dict(found.text)
        pipeline.text.to(on)
    pipeline.step = found.step
    return pipeline.eval()


def prepare_prompts(pipeline: Pipeline, prompts: Sequence[str]) -> None:
    """Encodes what will be drawn, and frees frozen encoders."""
    if isinstance(pipeline.text, FrozenText):
        pipeline.text.prepare([*prompts, NULL_PROMPT])


def check_options(dtype: str | None, offload: str) -> None:
    """Raises a UserError for options that there are not."""
    if offload not in OFFLOAD:
        raise UserError(f"--offload {offload}: must be one of {', '.join(OFFLOAD)}")
    check_dtype(dtype)


def requested_dtype(network: Flux, dtype: str | None) -> torch.dtype:
    """The one asked for; else the weights' own, and bfloat16 for fp8."""
    if dtype is not None:
        return DTYPES[dtype]
    own = network.img_in.weight.dtype
    return own if own in DTYPES.values() else torch.bfloat16


def place(network: Flux, device: torch.device, dtype: torch.dtype, offload: str) -> None:
    """Puts the network on the device in this dtype, or lets its blocks come and go."""
    if offload == "auto":
        offload = "blocks" if not _fits(network, device, dtype) else "none"
    if offload == "blocks":
        stream_blocks(network, device, dtype)
    else:
        network.to(device, dtype)


def _fits(network: Flux, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the weights and as much again as a tenth of them fit into free memory. Those that can
    stay mapped from their file always do: the system takes and gives their memory."""
    if device.type == "cpu" and all(p.dtype == dtype for p in network.parameters()):
        return True
    needed = sum(p.numel() for p in network.parameters()) * dtype.itemsize
    free = free_memory(device)
    return free is None or 1.1 * needed < free
