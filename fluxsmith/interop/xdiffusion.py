"""Checkpoints of the lesson's own repository, whose time runs the other way.

There s = 1 is data, s = 0 noise, and the network predicts u = x0 - eps at s. Here t = 1 - s and
v = eps - x0. Both changes fold into weights, so what is imported is an ordinary Flux.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.model.flux import TIMESTEP_WIDTH
from fluxsmith.nesting import written_out

MOST_VALUES = 10_000  # of its config
NETWORK = "_score_network."  # its CLIP and T5 lie under other names, and are dropped


def is_xdiffusion(contents: Any) -> bool:
    return isinstance(contents, dict) and "model_state_dict" in contents


def network_of(contents: dict[str, Any], origin: str) -> dict[str, Tensor]:
    """The network under BFL's names, in this project's time and sign."""
    state = contents["model_state_dict"]
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{origin}: its model_state_dict is none; the file is damaged")
    found = {
        name.removeprefix("_orig_mod.").removeprefix(NETWORK): tensor  # of torch.compile
        for name, tensor in state.items()
        if name.removeprefix("_orig_mod.").startswith(NETWORK)
    }
    if not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise UserError(f"{origin}: model_state_dict holds more than tensors; it is damaged")
    if not found:
        raise UserError(f"{origin}: model_state_dict has no {NETWORK}*; is it another model's?")
    found = {name.replace("_orig_mod.", ""): tensor for name, tensor in found.items()}
    return reversed_time(found, origin)


def reversed_time(network: dict[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The weights of the network v(x, t) = -u(x, 1 - t) from those of u.

    The first timestep layer sees cos(w s), sin(w s) for each frequency w. With s = 1 - t,

        cos(w - wt) =  cos w cos wt + sin w sin wt
        sin(w - wt) =  sin w cos wt - cos w sin wt,

    a fixed rotation with a reflection of cos(wt), sin(wt), which the layer's columns take over. The
    sign goes into the last layer.
    """
    first, last = "time_in.in_layer.weight", "final_layer.linear"
    lacking = [n for n in (first, f"{last}.weight", f"{last}.bias") if n not in network]
    if lacking:
        raise UserError(f"{origin} is not a whole Flux: it lacks {', '.join(lacking)}")
    weight = network[first]  # (hidden, 2 frequencies)
    if weight.ndim != 2 or weight.shape[1] != TIMESTEP_WIDTH:
        raise UserError(
            f"{origin}: {first} is {tuple(weight.shape)}; its width must be {TIMESTEP_WIDTH}"
        )
    of_cos, of_sin = weight.double().chunk(2, dim=1)
    w = _frequencies(TIMESTEP_WIDTH // 2)
    turned = torch.cat(
        (of_cos * w.cos() + of_sin * w.sin(), of_cos * w.sin() - of_sin * w.cos()), dim=1
    )
    changed = {first: turned.to(weight.dtype)}
    changed |= {f"{last}.{kind}": -network[f"{last}.{kind}"] for kind in ("weight", "bias")}
    return {**network, **changed}


def settings_of(contents: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint's own config says of the network, as far as no tensor's shape does."""
    found: dict[str, Any] = {}
    config = contents.get("config")
    if written_out(config, MOST_VALUES) > MOST_VALUES:  # small to read, and forever to walk through
        return found
    for key, value in _pairs(config):
        if key in ("axes_dim", "patch_size", "image_size", "theta"):
            found.setdefault(key, value)
    return found


def _frequencies(count: int) -> Tensor:
    """1000 times those of `model.blocks.timestep_embedding`, which rounds them to float32."""
    exponent = -math.log(10_000) * torch.arange(count, dtype=torch.float32) / count
    return 1000.0 * exponent.exp().double()


def _pairs(node: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested mappings and lists."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from _pairs(value)
    elif isinstance(node, list):
        for value in node:
            yield from _pairs(value)
