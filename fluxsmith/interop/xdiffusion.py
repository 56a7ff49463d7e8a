"""Checkpoints of the lesson's own repository, whose time runs the other way.

There s = 1 is data, s = 0 noise, and the network predicts u = x0 - eps at s. Here t = 1 - s and
v = eps - x0. Both changes fold into weights, so what is imported is an ordinary Flux.
"""

import math
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fluxsmith.model.flux import TIMESTEP_WIDTH

MOST_VALUES = 10_000  # that are looked at in its config
SETTINGS: dict[str, Any] = {
    "axes_dim": list,
    "patch_size": int,
    "image_size": int,
    "theta": (int, float),
}
NETWORK = "_score_network."  # its CLIP and T5 lie under other names, and are dropped


def is_xdiffusion(contents: Any) -> bool:
    return isinstance(contents, dict) and isinstance(contents.get("model_state_dict"), dict)


def network_of(contents: dict[str, Any]) -> dict[str, Tensor]:
    """The network under BFL's names, in this project's time and sign."""
    found = {}
    for name, tensor in contents["model_state_dict"].items():
        plain = str(name).replace("_orig_mod.", "")  # of torch.compile
        if plain.startswith(NETWORK) and isinstance(tensor, Tensor):
            found[plain.removeprefix(NETWORK)] = tensor
    return reversed_time(found)


def reversed_time(network: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the network v(x, t) = -u(x, 1 - t) from those of u.

    The first timestep layer sees cos(w s), sin(w s) for each frequency w. With s = 1 - t,

        cos(w - wt) =  cos w cos wt + sin w sin wt
        sin(w - wt) =  sin w cos wt - cos w sin wt,

    a fixed rotation with a reflection of cos(wt), sin(wt), which the layer's columns take over. The
    sign goes into the last layer. Weights without these layers stay as they are, so that
    `check_fits` names what they lack.
    """
    first = "time_in.in_layer.weight"
    last = ("final_layer.linear.weight", "final_layer.linear.bias")
    if not network.keys() >= {first, *last} or network[first].shape[1:] != (TIMESTEP_WIDTH,):
        return network
    weight = network[first]  # (hidden, 2 frequencies)
    of_cos, of_sin = weight.double().chunk(2, dim=1)
    w = _frequencies(TIMESTEP_WIDTH // 2)
    turned = torch.cat(
        (of_cos * w.cos() + of_sin * w.sin(), of_cos * w.sin() - of_sin * w.cos()), dim=1
    )
    return network | {first: turned.to(weight.dtype)} | {name: -network[name] for name in last}


def settings_of(contents: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint's own config says of the network and no tensor's shape does."""
    found: dict[str, Any] = {}
    waiting = [contents.get("config")]
    for node in islice(waiting, MOST_VALUES):
        if isinstance(node, dict):
            for key, kind in SETTINGS.items():
                if isinstance(node.get(key), kind):
                    found.setdefault(key, node[key])
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return found


def _frequencies(count: int) -> Tensor:
    """1000 times those of `model.blocks.timestep_embedding`, which rounds them to float32."""
    exponent = -math.log(10_000) * torch.arange(count, dtype=torch.float32) / count
    return 1000.0 * exponent.exp().double()
