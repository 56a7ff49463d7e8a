"""A new model as its ranks hold it: whole, or by `parallel.shard` cut before any rank has it whole.

A network that is cut is drawn as it would be in one piece, tensor by tensor, so its weights are
those of the same seed everywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fluxsmith.config import RunConfig
from fluxsmith.device import autocasts
from fluxsmith.interop.open_pipeline import with_adapter
from fluxsmith.kernels.accelerate import accelerate
from fluxsmith.kernels.activations import checkpoint_activations
from fluxsmith.parallel.ranks import Ranks
from fluxsmith.parallel.shares import Whole
from fluxsmith.pipeline import Pipeline

# What fills a tensor, in torch.nn.init and as a method.
FILLING = {
    "uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "constant_", "fill_", "zero_",
    "zeros_", "ones_",
}  # fmt: skip


def build_held(config: RunConfig, ranks: Ranks, device: torch.device) -> tuple[Pipeline, Whole]:
    """A new pipeline, and what this rank has of it; a call of all ranks at once."""
    train, shard = config.train, config.parallel.shard
    if shard == 1:
        frozen = train.adapter.kind != "none"
        pipeline = (with_adapter if frozen else Pipeline.build)(config, device)
        prepare(pipeline)
        return pipeline, Whole(pipeline)
    from fluxsmith.parallel.sharding import Shards, cut

    rank = ranks.rank % shard
    drawing = DrawnInShares(lambda whole: cut(whole, shard, rank))
    pipeline = Pipeline.build(config, device, empty=True, inside=drawing)
    drawn = drawing.shares(dict(pipeline.network.named_parameters()))
    if isinstance(pipeline.text, nn.Module):
        pipeline.text.to(device)
    prepare(pipeline)
    half = autocasts(device, train.precision) and not train.deterministic
    dtype = torch.bfloat16 if half else None
    network = pipeline.network
    blocks, exact = network.blocks, train.deterministic
    held = Shards(pipeline, network, blocks, ranks, shard, device, exact, dtype)
    with torch.no_grad():
        parts = dict(held.parts.named_parameters())
        for name, share in drawn.items():
            parts[f"network.{name}"].copy_(share)
    return pipeline, held


def prepare(pipeline: Pipeline) -> None:
    """A new network computes as its config says, from now on. Before it is cut, which gives its
    blocks a class of their own."""
    config = pipeline.config
    accelerate(pipeline.network, config.train.kernels)
    checkpoint_activations(pipeline.network.blocks, config.parallel.checkpoint_activations)


class DrawnInShares(TorchFunctionMode):
    """Inside, what fills a tensor of the meta device fills one of this machine's memory, of which
    `cut` takes a share. One tensor at a time is whole, and random numbers are those of a network
    that is built in one piece."""

    def __init__(self, cut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._cut = cut
        self._drawn: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of the empty tensor

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func is torch.ones:  # of norms, which are small
            return func(*args, **named | {"device": "cpu"})
        x = args[0] if args else named.pop("tensor", None)
        if getattr(func, "__name__", "") not in FILLING or not (
            isinstance(x, Tensor) and x.is_meta
        ):
            return func(*args, **dict(kwargs or {}))
        whole = torch.empty(x.shape, dtype=x.dtype, device="cpu")
        func(whole, *args[1:], **named)
        self._drawn[id(x)] = x, self._cut(whole).clone()
        return x

    def shares(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The share of each parameter."""
        return {
            name: self._drawn[id(p)][1] if p.is_meta else self._cut(p.detach())
            for name, p in parameters.items()
        }
