"""From a gradient to new weights and their average: norm, clipping, AdamW, average."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fluxsmith.errors import UserError
from fluxsmith.training.ema import EMA
from fluxsmith.training.one_pass import OnePass


@dataclass(frozen=True)
class Pace:
    """How far an update goes: numbers, or () on the device."""

    rate: float | Tensor  # AdamW's learning rate
    share: float | Tensor  # of the new weights in their average

    @property
    def captured(self) -> bool:
        """Whether the step is being captured as a CUDA graph."""
        on_gpu = isinstance(self.rate, Tensor) and self.rate.is_cuda
        return on_gpu and torch.cuda.is_current_stream_capturing()


class Update:
    """What follows a gradient, in as few passes over memory as the device has."""

    def __init__(
        self, module: nn.Module, optimiser: torch.optim.AdamW, ema: EMA, largest: float, waits: bool
    ) -> None:
        self.module = module
        self.optimiser = optimiser
        self.ema = ema
        self.largest = largest  # norm of a gradient, above which it is scaled down to it
        self.waits = waits  # whether it is known on the CPU if a step is good
        averages = {p: ema.weights[name] for name, p in module.named_parameters()}
        self._averages = {p: averages[p] for g in optimiser.param_groups for p in g["params"]}
        self._one_pass: OnePass | None = None  # over the gradients there are

    def gradient_norm(self) -> Tensor:
        """Of all parameters together: ()."""
        self._one_pass = self._prepared()
        if self._one_pass is not None:
            return self._one_pass.norm()
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def __call__(self, pace: Pace, norm: Tensor, good: Tensor) -> None:
        """Takes the step, unless it is not finite: then nothing changes.

        `norm` is what `gradient_norm` said of the gradients that there are.
        """
        one_pass, self._one_pass = self._one_pass, None
        with self._at(pace):
            if not self.waits:
                nn.utils.clip_grads_with_norm_(self.module.parameters(), self.largest, norm)
                # Where this is 1, the fused AdamW leaves weights and moments as they are.
                setattr(self.optimiser, "found_inf", (~good).float())  # noqa: B010 (not declared)
                self.optimiser.step()
                self.ema.update(self.module, pace.share, good)
            elif good:
                scale = min(1.0, self.largest / (float(norm) + 1e-6))
                if one_pass is not None:
                    one_pass.step(scale, float(pace.share))
                    return
                if scale < 1:
                    nn.utils.clip_grads_with_norm_(self.module.parameters(), self.largest, norm)
                self.optimiser.step()
                self.ema.update(self.module, pace.share)

    @contextmanager
    def _at(self, pace: Pace) -> Iterator[None]:
        """Inside, the optimiser goes at this pace. Then as before: a rate on the device belongs to
        a graph, and into no checkpoint."""
        groups = self.optimiser.param_groups
        before = [(group["lr"], group["capturable"]) for group in groups]
        for group in groups:
            group["lr"] = pace.rate
            group["capturable"] = pace.captured  # torch refuses a capture otherwise
        try:
            yield
        finally:
            for group, (rate, capturable) in zip(groups, before, strict=True):
                group |= {"lr": rate, "capturable": capturable}

    def _prepared(self) -> OnePass | None:
        # One pass is over what is trained; averages of the rest would stand still.
        if not self.waits or len(self._averages) < len(self.ema.weights):
            return None
        try:
            return OnePass(self.optimiser, self._averages)
        except UserError:  # other devices, other types, no compiler
            return None
