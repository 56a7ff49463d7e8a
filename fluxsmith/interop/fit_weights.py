"""Weights of one network as those of another that draws the same at first: with a guidance input or
without, and with features for the picture around a hole."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fluxsmith.config import RunConfig
from fluxsmith.interop.infer_params import check_fits
from fluxsmith.interop.read_weights import Weights
from fluxsmith.model.blocks import MLPEmbedder, timestep_embedding
from fluxsmith.model.flux import TIMESTEP_WIDTH, FluxParams
from fluxsmith.randomness import address_seed

GUIDANCE = "guidance_in."  # begins the names of its layers


def fitted(weights: Weights, config: RunConfig, params: FluxParams) -> Weights:
    """A model's weights for another of these sizes to begin with. A model of text alone becomes one
    that fills holes, blind, at first, to the picture around them. A student's (config.objective has
    a teacher) gets a guidance input, or loses it, as `with_guidance` says. What fits as it is, or
    not at all, stays as it is."""
    network = weights.network
    first = network.get("img_in.weight")
    if first is not None and first.shape[1] == params.out_channels:
        blind = first.new_zeros(len(first), params.in_channels - first.shape[1])
        network = network | {"img_in.weight": torch.cat((first, blind), dim=1)}
    given = any(name.startswith(GUIDANCE) for name in network)
    if getattr(config.objective, "teacher", None) and given != params.guidance_embed:
        check_fits(network, replace(params, guidance_embed=given), weights.origin)
        network = with_guidance(network, config, getattr(config.objective, "guidance", 1.0))
    return replace(weights, network=network)


def with_guidance(
    network: Mapping[str, Tensor], config: RunConfig, scale: float
) -> dict[str, Tensor]:
    """A network's weights as those of a student of this config that draws the same.

    A guidance input that only the student has starts at zero. One that only the network has is a
    constant at a fixed scale, which goes into the bias of the embedded text vector.
    """
    theirs = {n.removeprefix(GUIDANCE): t for n, t in network.items() if n.startswith(GUIDANCE)}
    name = "vector_in.out_layer.bias"
    bias = network[name]
    dtype = bias.dtype if bias.itemsize > 1 else torch.bfloat16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(address_seed(config.seed, "guidance input"))
        embedder = MLPEmbedder(TIMESTEP_WIDTH, config.model.hidden_size)
        nn.init.normal_(embedder.in_layer.weight, std=0.02)
    if config.model.guidance_embed and not theirs:
        for zero in (embedder.in_layer.bias, *embedder.out_layer.parameters()):
            nn.init.zeros_(zero)
        return {**network, **embedder.to(bias.device, dtype).state_dict(prefix=GUIDANCE)}
    if config.model.guidance_embed or not theirs:
        return dict(network)
    embedder.load_state_dict(theirs)
    with torch.no_grad():
        at = timestep_embedding(torch.tensor([scale], dtype=dtype), TIMESTEP_WIDTH)
        constant = embedder(at)[0].to(bias.device)
    kept = {n: t for n, t in network.items() if not n.startswith(GUIDANCE)}
    return kept | {name: (bias.float() + constant).to(dtype)}
