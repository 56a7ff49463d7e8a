"""Whether a network still normalises what it computes with."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fluxsmith.model.flux import Flux
from fluxsmith.parallel.shares import unsharded
from fluxsmith.randomness import generator

LOUD, LOUDER = 4.0, 32.0  # sizes of what is given to layers that normalise it
ROUNDING = 1e-4  # what is smaller than this beside a stream may be rounding


@torch.no_grad()
def norm_error(network: Flux) -> float:
    """How much of what blocks, norms and the last layer make of a stream, which each of them begins
    by normalising, depends on its size: the largest relative change when it grows eightfold, near
    0, or about 7 where a norm is missing. A little comes from the second half of a dual block,
    which normalises the sum of stream and first half. NaN where the network is not in float32."""
    params, device = network.params, network.img_in.weight.device
    with unsharded(network):  # one that is cut may compute in another dtype than it is kept in
        if network.img_in.weight.dtype != torch.float32:
            return math.nan
    draw = generator("norm error")

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(device)

    vec, ids = noise(1, params.hidden_size), torch.zeros(4, 3, device=device)
    pe = network.rotary(ids[:2], ids[2:])

    def added(block: nn.Module) -> Callable[..., list[Tensor]]:
        def call(*streams: Tensor) -> list[Tensor]:
            out = block(*streams, vec, pe, None)
            ends = out if isinstance(out, tuple) else (out,)
            return [end - start for end, start in zip(ends, streams, strict=True)]

        return call

    def error(function: Callable[..., Iterable[Tensor]], *streams: Tensor) -> float:
        loud, louder = (
            torch.cat([x.flatten() for x in function(*[scale * x for x in streams])])
            for scale in (LOUD, LOUDER)
        )
        told = loud.norm() > ROUNDING * LOUD * torch.stack(streams).norm()
        return float((louder - loud).norm() / loud.norm()) if told else 0.0

    def of_norms(block: nn.Module) -> list[float]:
        parts = [part for name, part in block.named_modules() if name.split(".")[-1] == "norm"]
        with unsharded(block):
            return [error(norm, noise(1, 1, 2, head), noise(1, 1, 2, head)) for norm in parts]

    head = params.hidden_size // params.num_heads
    stream = noise(1, 4, params.hidden_size)
    with unsharded(network):
        last = error(lambda x: [network.final_layer(x, vec)], stream)
    return max(
        *(found for block in network.blocks for found in of_norms(block)),
        *(error(added(block), *stream.split(2, dim=1)) for block in network.double_blocks),
        *(error(added(block), stream) for block in network.single_blocks),
        last,
    )
