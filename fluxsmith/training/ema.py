"""The exponential moving average of the weights, which samples are drawn with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TOGETHER = 32  # tensors that a masked update takes at a time, to bound the memory it needs


class EMA:
    """A float32 average of a module's parameters, by name, on their device.

    The decay of update n (from 0) is min(decay, (1 + n) / (10 + n)), as in TensorFlow's
    ExponentialMovingAverage, so that a short run isn't held back by its first weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {
            name: p.detach().float().clone(memory_format=torch.contiguous_format)
            for name, p in module.named_parameters()
        }

    def share(self, n: int) -> float:
        """1 - decay of update n: how much of the weights goes into their average."""
        return 1 - min(self.decay, (1 + n) / (10 + n))

    @torch.no_grad()
    def update(self, module: nn.Module, share: float | Tensor, good: Tensor | None = None) -> None:
        """ema += share (weights - ema), for every tensor in one call.

        `good`, () bool on the device, says whether to: where it is false, nothing changes.
        """
        current = [p.detach().float() for p in module.parameters()]
        average = list(self.weights.values())
        if good is None:
            torch._foreach_lerp_(average, current, float(share))
            return
        for i in range(0, len(average), TOGETHER):
            change = torch._foreach_sub(current[i : i + TOGETHER], average[i : i + TOGETHER])
            torch._foreach_mul_(change, good * share)
            torch._foreach_add_(average[i : i + TOGETHER], change)

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])

    @contextmanager
    def in_place_of(self, module: nn.Module) -> Iterator[None]:
        """Inside, the module runs with the averaged weights; afterwards with its own, untouched."""
        own = {name: p.data for name, p in module.named_parameters()}
        for name, p in module.named_parameters():
            p.data = self.weights[name].to(p.dtype)
        try:
            yield
        finally:
            for name, p in module.named_parameters():
                p.data = own[name]
