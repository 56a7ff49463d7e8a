"""Linear layers with a change of low rank beside their frozen weight. A plain layer becomes such a
one in place: its own parameters keep their names and values."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxsmith.adapters.low_rank import LowRank, joined
from fluxsmith.errors import UserError

FLOAT8 = torch.float8_e4m3fn


class LoraLinear(nn.Linear):
    """W x + b, and on some rows + scale · B A dropout(x) (Hu et al. 2022, "LoRA", eq. 3)."""

    lora_A: nn.Parameter  # (rank, in)
    lora_B: nn.Parameter  # (rows, rank)
    scale: float
    start: int  # the first of the rows
    dropout: float
    active: bool

    def forward(self, x: Tensor) -> Tensor:
        y = frozen_linear(x, self)
        if not self.active:
            return y
        inner = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A.to(x.dtype))
        change = F.linear(self.scale * inner, self.lora_B.to(inner.dtype))  # (..., rows)
        after = self.out_features - self.start - len(self.lora_B)
        return y + (F.pad(change, (self.start, after)) if self.start or after else change)


class Float8Linear(nn.Linear):
    """A layer whose frozen weight is kept in float8, with a scale for each row."""

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self)


def frozen_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """W x + b, with W as it is or from float8."""
    scale: Tensor | None = getattr(layer, "weight_scale", None)
    if scale is None:
        return F.linear(x, layer.weight, layer.bias)
    return _FromFloat8.apply(x, layer.weight, scale, layer.bias)


class _FromFloat8(torch.autograd.Function):
    """A product that keeps no copy of the weight for the backward pass: it makes one again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, weight.to(x.dtype) * scale.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        dtype = gradients[0].dtype
        return gradients[0] @ (weight.to(dtype) * scale.to(dtype)), None, None, None


def keep_in_float8(modules: Iterable[nn.Module]) -> None:
    """Keeps the weights of their linear layers in float8. Scales are powers of two, so weights that
    were float8 before are not rounded again."""
    for layer in chain.from_iterable(module.modules() for module in modules):
        if type(layer) is nn.Linear:
            weight = layer.weight.detach()
            largest = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
            scale = torch.exp2(torch.ceil(torch.log2(largest / torch.finfo(FLOAT8).max)))
            layer.weight = nn.Parameter((weight.float() / scale).to(FLOAT8), requires_grad=False)
            layer.__class__ = Float8Linear
            layer.register_buffer("weight_scale", scale, persistent=False)  # (out, 1)


def add(layer: nn.Linear, change: LowRank, dropout: float = 0.0) -> None:
    """Makes a plain layer one with this change, whose tensors become its parameters."""
    assert type(layer) in (nn.Linear, Float8Linear), f"{change.layer} is a {type(layer).__name__}"
    layer.__class__ = LoraLinear
    layer.lora_A, layer.lora_B = nn.Parameter(change.down), nn.Parameter(change.up)
    settings = {"scale": change.scale, "start": change.start, "dropout": dropout, "active": True}
    for name, value in settings.items():
        setattr(layer, name, value)


def remove(layer: LoraLinear) -> None:
    """The plain layer again."""
    for name in ("lora_A", "lora_B", "scale", "start", "dropout", "active"):
        delattr(layer, name)
    layer.__class__ = Float8Linear if hasattr(layer, "weight_scale") else nn.Linear  # type: ignore[assignment]


def lora_layers(network: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Those of a network, by name."""
    for name, module in network.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def change_of(name: str, layer: LoraLinear) -> LowRank:
    """What a layer of this name changes."""
    return LowRank(name, layer.lora_A.detach(), layer.lora_B.detach(), layer.scale, layer.start)


@contextmanager
def without_adapters(network: nn.Module) -> Iterator[None]:
    """Inside, the network computes as its base does: the teacher of an adapter that is trained."""
    layers = [layer for _, layer in lora_layers(network)]
    before = [layer.active for layer in layers]
    for layer in layers:
        layer.active = False
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer.active = active


def add_changes(
    network: nn.Module, changes: Iterable[LowRank], dtype: torch.dtype | None = None
) -> None:
    """Adds the changes of any number of LoRAs, for drawing in `dtype`, or the weights' own. Weights
    in float32 take them in, and cost nothing more from then on; in bfloat16 that would round them,
    so there they stay beside the weights, one pair of matrices a layer for all."""
    by_layer: dict[str, list[LowRank]] = {}
    for change in changes:
        by_layer.setdefault(change.layer, []).append(change)
    for name, own in by_layer.items():
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        if layer.weight.dtype == torch.float32 == (dtype or torch.float32):
            layer.weight = nn.Parameter(merged(layer.weight.detach(), own))
            continue
        if isinstance(layer, LoraLinear):
            own = [change_of(name, layer), *own]
            remove(layer)
        exact = [replace(change, down=change.down.float(), up=change.up.float()) for change in own]
        add(layer, joined(exact, 0, layer.out_features))


def merge(network: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Takes the changes of LoRA layers into their weights, in float32 and then `dtype` or their
    own; the layers are plain again, and so are those that were kept in float8."""
    for name, layer in list(network.named_modules()):
        if not isinstance(layer, LoraLinear | Float8Linear):
            continue
        changes = [change_of(name, layer)] if isinstance(layer, LoraLinear) else []
        weight, scale = layer.weight.detach(), getattr(layer, "weight_scale", 1.0)
        exact = merged(weight, changes, dtype, scale)
        if isinstance(layer, LoraLinear):
            remove(layer)
        if isinstance(layer, Float8Linear):
            del layer.weight_scale
            layer.__class__ = nn.Linear  # type: ignore[assignment]
        layer.weight = nn.Parameter(exact)


def merged(
    weight: Tensor,
    changes: Iterable[LowRank],
    dtype: torch.dtype | None = None,
    scale: Tensor | float = 1.0,
) -> Tensor:
    """A weight (out, in) times its scale (out, 1) with changes, added in float32 and then in
    `dtype` or its own, which must not be float8."""
    if dtype is None and weight.dtype.itemsize == 1:
        raise UserError(
            f"the weights are in {str(weight.dtype).removeprefix('torch.')}, which would round "
            f"away what a LoRA changes; give --dtype bfloat16"
        )
    total = weight.to(torch.float32, copy=True).mul_(scale)
    for change in changes:
        total[change.start : change.stop] += change.change().to(total.device)
    return total.to(dtype or weight.dtype)
