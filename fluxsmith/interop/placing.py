"""How a model whose weights are mapped from their file comes to the device in little memory: frozen
text encoders do their work and go before the network comes, perhaps block by block."""

from collections.abc import Sequence

import torch
from torch import nn

from fluxsmith.device import computing_dtype, free_memory
from fluxsmith.errors import UserError
from fluxsmith.interop.dtypes import DTYPES, check_dtype
from fluxsmith.model.flux import Flux
from fluxsmith.model.streaming import stream_blocks
from fluxsmith.pipeline import Pipeline
from fluxsmith.text.encoder import NULL_PROMPT
from fluxsmith.text.frozen import FrozenText

OFFLOAD = ("auto", "blocks", "none")


def check_placing(dtype: str | None, offload: str) -> None:
    """Raises a UserError for options that there are not."""
    if offload not in OFFLOAD:
        raise UserError(f"--offload {offload}: must be one of {', '.join(OFFLOAD)}")
    check_dtype(dtype)


def encode_prompts(pipeline: Pipeline, prompts: Sequence[str]) -> None:
    """Keeps the embeddings of these prompts and of the empty one, and frees frozen encoders."""
    text = pipeline.text
    if isinstance(text, FrozenText):
        text([*prompts, NULL_PROMPT])
        text.flush()
        text.release()


def place_model(pipeline: Pipeline, device: torch.device, dtype: str | None, offload: str) -> None:
    """Puts network and learned text encoder on the device; the network in the dtype asked for."""
    place(pipeline.network, device, requested_dtype(pipeline.network, dtype), offload)
    if isinstance(pipeline.text, nn.Module):
        pipeline.text.to(device)


def requested_dtype(network: Flux, dtype: str | None) -> torch.dtype:
    """The one asked for; else the weights' own, and bfloat16 for fp8."""
    if dtype is not None:
        return DTYPES[dtype]
    return computing_dtype(network.img_in.weight.dtype)


def place(network: Flux, device: torch.device, dtype: torch.dtype, offload: str) -> None:
    """Puts the network on the device in this dtype, or lets its blocks come and go; `auto` does so
    where the device's free memory is too small."""
    if offload == "auto":
        offload = "none" if _fits(network, device, dtype) else "blocks"
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
