"""Averages over a run: of the weights, with which samples are drawn, and of the losses since the
last record."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fluxsmith.training.objective import Losses

MASKED_AT_ONCE = 32  # tensors that a masked update takes at a time, to bound the memory it needs
QUARTILES = 4


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
    def update(
        self, weights: Iterable[Tensor], share: float | Tensor, good: Tensor | None = None
    ) -> None:
        """ema += share (weights - ema), for all tensors together; the weights in their order.

        `good`, () bool on the device, says whether to: where it is false, nothing changes. Then it
        is done for a few tensors at a time, since their changes are in memory too.
        """
        current = [weight.detach().float() for weight in weights]
        average = list(self.weights.values())
        if good is None:
            torch._foreach_lerp_(average, current, float(share))
            return
        for start in range(0, len(average), MASKED_AT_ONCE):
            part = slice(start, start + MASKED_AT_ONCE)
            change = torch._foreach_sub(current[part], average[part])
            torch._foreach_mul_(change, good * share)
            torch._foreach_add_(average[part], change)

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])


class RunningMeans:
    """The mean loss by quartile of t, the losses' other terms, the norm of the gradient, its root
    mean square by kind of parameter, the share of steps whose gradient was clipped, and the number
    of steps that were skipped because they were not finite, which count in no mean.

    Sums are kept on the device and read when a record is due, so no step waits for the device.
    """

    def __init__(
        self,
        device: torch.device | str,
        terms: Sequence[str] = (),
        kinds: Sequence[str] = (),
        largest: float = float("inf"),
    ) -> None:
        self.terms = tuple(terms)
        self.kinds = tuple(dict.fromkeys(kinds))  # each parameter's in `kinds`, in order
        self.largest = largest  # norm of a gradient, above which it is clipped
        members = [[float(kind == each) for each in self.kinds] for kind in kinds]
        self._members = torch.tensor(members, device=device).view(len(kinds), len(self.kinds))
        # Losses and their number by quartile, norms and their number, skipped steps, other terms,
        # clipped steps and squared norms by kind.
        self._sizes = [QUARTILES, QUARTILES, 2, 1, len(self.terms), 1 + len(self.kinds)]
        # One tensor, so that a GPU is asked once for all of it.
        self.totals = torch.zeros(sum(self._sizes), device=device, dtype=torch.float32)
        sums, counts, norms, skipped, others, gradients = self.totals.split(self._sizes)
        self._sums, self._counts, self._norms, self._terms = sums, counts, norms, others
        self._skipped, self._gradients = skipped[0], gradients

    @torch.no_grad()
    def add(
        self, losses: Losses, norm: Tensor, good: Tensor, squares: Tensor | None = None
    ) -> None:
        """A step's losses, its gradient's norm, whether it was finite: () bool, and the squared
        norm of each parameter's gradient (parameters,)."""
        quartile = (losses.t * QUARTILES).long().clamp(0, QUARTILES - 1)  # (b,)
        member = quartile[:, None] == torch.arange(QUARTILES, device=quartile.device)  # (b, 4)
        # where, since the product of 0 and a NaN is a NaN
        self._sums += torch.where(good, losses.total, 0) @ member.to(losses.total.dtype)
        self._counts += member.sum(0) * good
        self._norms[0] += torch.where(good, norm, 0)
        self._norms[1] += good
        self._skipped += ~good
        for i, name in enumerate(self.terms):
            self._terms[i] += torch.where(good, losses.terms[name].mean(), 0)
        self._gradients[0] += (norm > self.largest) & good
        if squares is not None:
            self._gradients[1:] += torch.where(good, squares, 0) @ self._members

    def means(self) -> dict[str, float]:
        """The means, after which the sums are zero again. Waits for the device."""
        found = self.totals.cpu().split(self._sizes)
        sums, counts, norms, (skipped,), terms, gradients = (part.tolist() for part in found)
        self.totals.zero_()
        record: dict[str, float] = {"skipped_steps": int(skipped)} if skipped else {}
        steps = norms[1]
        if not steps:
            return record
        record |= {"loss": sum(sums) / sum(counts), "grad_norm": norms[0] / steps}
        for i, (total, count) in enumerate(zip(sums, counts, strict=True)):
            if count:
                record[f"loss_q{i + 1}"] = total / count
        record |= {name: one / steps for name, one in zip(self.terms, terms, strict=True)}
        if self.kinds:
            clipped, *squares = gradients
            record["clipped_steps"] = clipped / steps  # a share
            for kind, square in zip(self.kinds, squares, strict=True):
                record[f"gradient/{kind}"] = (square / steps) ** 0.5
        return record

    def state_dict(self) -> dict[str, Tensor]:
        state = {
            "sums": self._sums,
            "counts": self._counts,
            "norms": self._norms,
            "skipped": self._skipped,
        }
        if self.terms:
            state["terms"] = self._terms
        if self.kinds:
            state["gradients"] = self._gradients
        # Views of one tensor would be saved as such, where a copy of the state is not.
        return {name: part.clone() for name, part in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._sums.copy_(state["sums"])
        self._counts.copy_(state["counts"])
        self._norms.copy_(state["norms"])
        self._skipped.copy_(state.get("skipped", torch.zeros(())))
        if self.terms:
            self._terms.copy_(state["terms"])
        if self.kinds:
            self._gradients.copy_(state.get("gradients", torch.zeros(())))
