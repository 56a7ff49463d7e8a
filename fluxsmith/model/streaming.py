"""A network larger than memory: its blocks stay where their weights are, perhaps in a mapped file,
and each comes to the device, in the dtype of the computation, for the time that it computes."""

from typing import Any

import torch
from torch import Tensor, nn

from fluxsmith.model.flux import Flux


def stream_blocks(network: Flux, device: torch.device, dtype: torch.dtype) -> None:
    """From now on blocks come and go; everything outside them moves to the device for good.

    For sampling: a step costs reading all weights once more, and gradients are not kept.
    """
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    network.streamed = True
    for name, part in network.named_children():
        if name not in ("double_blocks", "single_blocks"):
            part.to(device, dtype)
    for block in network.blocks:
        _Visit(block, device, dtype)


class _Visit:
    """Brings one block's weights before its forward pass, and drops them after it."""

    def __init__(self, block: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.home: dict[str, Tensor] = {name: p.data for name, p in block.named_parameters()}
        block.register_forward_pre_hook(self.come)
        block.register_forward_hook(self.go, always_call=True)

    def come(self, block: nn.Module, inputs: Any) -> None:
        for name, parameter in block.named_parameters():
            parameter.data = self.home[name].to(self.device, self.dtype)

    def go(self, block: nn.Module, inputs: Any, output: Any) -> None:
        for name, parameter in block.named_parameters():
            parameter.data = self.home[name]
