"""A network on its device: whole, or block by block where it is larger than the device's memory.

Offloaded blocks stay where their weights are, perhaps in a file mapped into memory. Each is copied
to the device, in the dtype of the computation, only while it computes.
"""

from typing import Any

import torch
from torch import nn

from fluxsmith.device import computing_dtype, free_memory
from fluxsmith.errors import UserError
from fluxsmith.model.flux import Flux

MODES = ("auto", "blocks", "none")


def check_mode(mode: str) -> None:
    """Raises a UserError for an --offload that there is not."""
    if mode not in MODES:
        raise UserError(f"--offload {mode}: must be one of {', '.join(MODES)}")


def place(
    network: Flux, device: torch.device, dtype: torch.dtype | None = None, mode: str = "none"
) -> None:
    """Puts the network on the device: whole (`none`), with its blocks offloaded (`blocks`), or with
    its blocks offloaded only if the device's free memory is too small for all (`auto`).

    `dtype` is the weights' own by default, and bfloat16 for fp8. Offloading is for sampling: each
    evaluation copies all weights once, and gradients are not kept.
    """
    dtype = dtype or computing_dtype(network)
    if mode == "blocks" or (mode == "auto" and not _fits(network, device, dtype)):
        offload_blocks(network, device, dtype)
    else:
        network.to(device, dtype)


def offload_blocks(network: Flux, device: torch.device, dtype: torch.dtype) -> None:
    """Offloads the blocks from now on; everything outside them moves to the device for good."""
    network.requires_grad_(False)
    for name, part in network.named_children():
        if name not in ("double_blocks", "single_blocks"):
            part.to(device, dtype)
    for block in network.blocks:
        _offload(block, device, dtype)


def is_offloaded(network: Flux) -> bool:
    """Whether the network's blocks are copied to the device only while they compute."""
    return any(block._forward_pre_hooks for block in network.blocks)


def _offload(block: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Copies one block's weights to the device before each forward pass, and drops them after."""
    home = {name: p.data for name, p in block.named_parameters()}

    def load(*_: Any) -> None:
        for name, parameter in block.named_parameters():
            parameter.data = home[name].to(device, dtype)

    def drop(*_: Any) -> None:
        for name, parameter in block.named_parameters():
            parameter.data = home[name]

    block.register_forward_pre_hook(load)
    block.register_forward_hook(drop, always_call=True)


def _fits(network: Flux, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the weights and a tenth more fit into free memory. On the CPU, weights that keep
    their dtype always do: they stay mapped from their file, and the system frees their memory."""
    if device.type == "cpu" and all(p.dtype == dtype for p in network.parameters()):
        return True
    needed = sum(p.numel() for p in network.parameters()) * dtype.itemsize
    free = free_memory(device)
    return free is None or 1.1 * needed < free
