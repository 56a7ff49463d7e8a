"""What a rank holds of a model: all of it, or (`sharding`) its share of every tensor."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class Parts(nn.Module):
    """Some parameters of a model, or a rank's shares of them, plain tensors under its names."""

    def __init__(self, own: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._own = own

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self._own.items()


class Whole:
    """Of a rank that has all of a model. `parts` are the parameters that it updates, under the
    model's names, `own` or all that are trained; what belongs to one, such as a moment, is cut as
    it is."""

    sums_each_piece = False  # over ranks, before the next one
    waiting: Callable[[str], AbstractContextManager[Any]] = nullcontext  # for shares of others

    def __init__(self, model: nn.Module, own: Mapping[str, nn.Parameter] | None = None) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.model, self.parts = model, Parts(trained if own is None else own)

    def uncut(self, parameters: Sequence[nn.Parameter]) -> Sequence[nn.Parameter]:
        """Those that every rank has whole."""
        return parameters

    def joined(self, part: Tensor, x: Tensor) -> Tensor:
        """What belongs to a part as a tensor that knows of the other ranks' shares (a DTensor)."""
        return x

    def gathered(self, part: Tensor, x: Tensor) -> Tensor:
        """The same whole, on every rank; a call of all ranks at once."""
        return x

    def share(self, part: Tensor, x: Tensor) -> Tensor:
        """Of a whole tensor, or of a joined one, what belongs to the part."""
        return x

    def empty(self, part: Tensor, whole: Tensor) -> Tensor:
        """In this machine's memory, room for what belongs to the part of such a whole tensor."""
        return torch.empty_like(whole, device="cpu")

    def on_host(self, x: Tensor, copy: bool) -> Tensor:
        """A joined tensor in this machine's memory, copied if it is there already."""
        return x.to("cpu", copy=copy)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copies tensors to those of the same names; a RuntimeError where they don't fit."""
        self.model.load_state_dict(weights)

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the model has these weights, by name; then its own again, untouched."""
        own = {name: p.data for name, p in self.parts.named_parameters()}
        for name, p in self.parts.named_parameters():
            p.data = weights[name].to(p.dtype)
        try:
            yield
        finally:
            for name, p in self.parts.named_parameters():
                p.data = own[name]

    def squares(
        self, parameters: Sequence[nn.Parameter], of: Callable[[Sequence[Tensor | None]], Tensor]
    ) -> Tensor:
        """The squared norm of each parameter's whole gradient (parameters,), by `of` some."""
        return of([p.grad for p in parameters])

    def sync(self, wanted: bool) -> None:
        """Whether the next backward pass sums gradients over ranks, or keeps them for later."""

    def collect(self) -> None:
        """Has each part's gradient in its `grad`, after a backward pass."""


def is_cut(x: Tensor) -> bool:
    """Whether this is a share that knows of the others."""
    return hasattr(x, "full_tensor")


@contextmanager
def unsharded(module: Any) -> Iterator[None]:
    """Inside, a module of a cut model has its weights whole, for who calls its layers alone."""
    if cut := hasattr(module, "unshard"):
        module.unshard()
    try:
        yield
    finally:
        if cut:
            module.reshard()
