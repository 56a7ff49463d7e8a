"""One training step on the device: from a batch's inputs to new weights and their average."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fluxsmith.parallel.gradients import Gradients
from fluxsmith.training.averages import EMA, RunningMeans
from fluxsmith.training.objective import Losses, Objective


@dataclass(frozen=True)
class StepScalars:
    """How far an update goes: numbers, or () on the device."""

    rate: float | Tensor  # the optimiser's learning rate
    share: float | Tensor  # of the new weights in their average


@dataclass(frozen=True)
class Step:
    """All that a step needs. Its micro-batches, of one size, may be made one after the other, so
    that only one of them has to be in memory."""

    microbatches: Iterable[Any]  # of what the objective prepares
    scalars: StepScalars


class TrainStep:
    """Losses, gradient, norm, guard, update. Where the update is masked, as on a GPU, the host
    waits for nothing in it and looks at no number, so it can be captured as a CUDA graph."""

    def __init__(
        self,
        objective: Objective,
        accumulate: int,
        guard: "Guard",
        means: RunningMeans,
        update: "Update",
        gradients: Gradients | None = None,
    ) -> None:
        self.objective = objective
        self.accumulate = accumulate  # the number of a step's micro-batches, on all ranks
        self.guard = guard
        self.means = means
        self.update = update
        self.gradients = gradients  # where a batch has several pieces

    def __call__(self, step: Step) -> None:
        try:
            losses = self._backward(step.microbatches)
            squares = self._squares()
            norm = squares.sum().sqrt()
            good = self.guard.check(losses, norm)
            self.means.add(losses, norm, good, squares)
            self.update(step.scalars, norm, good)
        finally:
            self.update.optimiser.zero_grad(set_to_none=True)

    def _squares(self) -> Tensor:
        """The squared norm of each trained parameter's gradient (parameters,), 0 without one."""
        if self.gradients is None:
            return gradient_squares([p.grad for p in self.update.trained])
        return self.gradients.held.squares(self.update.trained, gradient_squares)

    def _backward(self, microbatches: Iterable[Any]) -> Losses:
        parts = []
        for inputs in microbatches:
            losses = losses_of(self.objective, inputs)
            (losses.total.mean() / self.accumulate).backward()
            parts.append(losses)
            if self.gradients is not None:
                self.gradients.add()
        losses = joined(parts)
        if self.gradients is None:
            return losses
        self.gradients.finish()
        return losses.together(self.gradients.gather)


class Update:
    """What follows a gradient, with any optimiser. With `host_sync` false it must be one that skips
    a step where its `found_inf` is 1, as torch's fused ones do."""

    def __init__(
        self,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        ema: EMA,
        largest: float,
        host_sync: bool,
    ) -> None:
        self.weights = list(module.parameters())  # that are averaged
        self.optimiser = optimiser
        self.ema = ema
        self.largest = largest  # norm of a gradient, above which it is scaled down to it
        self.host_sync = host_sync  # whether it is known on the CPU if a step is good
        self.trained = [p for group in optimiser.param_groups for p in group["params"]]

    def __call__(self, scalars: StepScalars, norm: Tensor, good: Tensor) -> None:
        """Takes the step, unless it is not `good`: then nothing changes.

        `norm` is that of the gradients that there are.
        """
        if self.host_sync and not good:
            return
        with self._at(scalars):
            if not self.host_sync:
                setattr(self.optimiser, "found_inf", (~good).float())  # noqa: B010 (not declared)
            scale = ((norm + 1e-6) / self.largest).clamp(min=1)  # by which gradients are divided
            divides = getattr(self.optimiser, "_step_supports_amp_scaling", False)
            if divides and norm.device.type != "mps":  # Metal's kernel takes no scale
                # A fused optimiser divides on its way, which saves a pass over memory.
                needed = not self.host_sync or scale > 1
                setattr(self.optimiser, "grad_scale", scale if needed else None)  # noqa: B010
            else:
                nn.utils.clip_grads_with_norm_(self.trained, self.largest, norm)
            self.optimiser.step()
            self.ema.update(self.weights, scalars.share, None if self.host_sync else good)

    @contextmanager
    def _at(self, scalars: StepScalars) -> Iterator[None]:
        """Inside, the optimiser has this learning rate. Then as before: a rate on the device
        belongs to a graph, and not into a checkpoint."""
        groups = self.optimiser.param_groups
        keys = {"lr", "capturable"} & groups[0].keys()  # not every optimiser knows of captures
        before = [{key: group[key] for key in keys} for group in groups]
        # torch refuses a capture where an optimiser does not say that it is capturable.
        on_gpu = isinstance(scalars.rate, Tensor) and scalars.rate.is_cuda
        captured = on_gpu and torch.cuda.is_current_stream_capturing()
        for group in groups:
            now = {"lr": scalars.rate * group.get("rate", 1.0), "capturable": captured}
            group |= {key: now[key] for key in keys}
        try:
            yield
        finally:
            for group, settings in zip(groups, before, strict=True):
                group |= settings


def losses_of(objective: Objective, inputs: Any) -> Losses:
    """An objective's losses. Where they contain gradients, attention is computed in the one way
    that torch can differentiate twice."""
    twice = objective.second_derivatives
    with sdpa_kernel(SDPBackend.MATH) if twice else nullcontext():
        return objective.losses(inputs)


def gradient_squares(gradients: Sequence[Tensor | None]) -> Tensor:
    """The squared norm of each (n,), 0 where there is none."""
    there = [g for g in gradients if g is not None]
    if not there or there[0].device.type == "cpu":
        # On a CPU torch's dot product takes half the time of its norm.
        squares = [g.flatten().dot(g.flatten()) for g in there]
    else:
        squares = [norm.square() for norm in torch._foreach_norm(there)]
    found, none = iter(squares), torch.zeros((), device=there[0].device if there else "cpu")
    return torch.stack([none if g is None else next(found) for g in gradients]).float()


class Guard:
    """Steps whose loss or gradient is not finite never reach the weights; many in a row end a run.

    The verdict stays on the device. A CPU reads it at once; elsewhere that would make every step
    wait, so there the update itself is masked and the count is read now and then.
    """

    def __init__(self, limit: int, device: torch.device) -> None:
        self.limit = limit
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def check(self, losses: Losses, norm: Tensor) -> Tensor:
        """Whether the step is finite: () bool, on the device."""
        good = norm.isfinite() & losses.total.isfinite().all()
        self.in_a_row.add_(1).mul_(~good)  # in place, where a CUDA graph looks
        return good

    def exhausted(self, step: int, host_sync: bool) -> bool:
        """Whether the last `limit` steps were bad; asked only every `limit` steps where the host
        does not wait for each step's verdict."""
        if not host_sync and step % self.limit:
            return False
        return int(self.in_a_row) >= self.limit

    def state_dict(self) -> dict[str, Tensor]:
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.in_a_row.copy_(state.get("in_a_row", torch.zeros(())))


def joined(parts: list[Losses]) -> Losses:
    """The losses of a batch from those of its micro-batches, without their graphs."""
    total = torch.cat([part.total.detach() for part in parts])
    terms = {
        name: torch.cat([part.terms[name].detach() for part in parts]) for name in parts[0].terms
    }
    return Losses(total, torch.cat([part.t for part in parts]), terms)
