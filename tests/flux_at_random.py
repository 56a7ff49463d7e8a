"""A Flux with weights that matter, and inputs for it: a new one predicts 0 whatever it is given."""

import torch

from fluxsmith.model.flux import Flux, FluxParams
from fluxsmith.model.tokens import image_ids, text_ids

CPU = torch.device("cpu")


def tiny_params(**changes):
    sizes = {
        "in_channels": 4,
        "vec_in_dim": 6,
        "context_in_dim": 10,
        "hidden_size": 32,
        "mlp_ratio": 4.0,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": (4, 6, 6),
        "theta": 10_000,
        "qkv_bias": True,
        "guidance_embed": False,
    }
    return FluxParams(**{**sizes, **changes})


@torch.no_grad()
def flux_at_random(params, seed=0):
    """Every weight from a normal distribution that keeps outputs of order 1; RMS scales near 1."""
    with torch.device("meta"):
        flux = Flux(params)
    flux.to_empty(device=CPU)
    g = torch.Generator().manual_seed(seed)
    for name, p in flux.named_parameters():
        fan_in = p.shape[1] if p.ndim == 2 else 16
        p.copy_(torch.randn(p.shape, generator=g) * fan_in**-0.5 + name.endswith("norm.scale"))
    return flux


def inputs(params, batch=3, rows=3, columns=5, length=4, seed=1):
    """The arguments of Flux.forward, a time (and a guidance scale) of its own for each sample."""
    g = torch.Generator().manual_seed(seed)
    guidance = torch.linspace(1, 5, batch) if params.guidance_embed else None
    return {
        "img": torch.randn(batch, rows * columns, params.in_channels, generator=g),
        "img_ids": image_ids(rows, columns, CPU),
        "txt": torch.randn(batch, length, params.context_in_dim, generator=g),
        "txt_ids": text_ids(length, CPU),
        "timesteps": torch.linspace(0.9, 0.1, batch),
        "y": torch.randn(batch, params.vec_in_dim, generator=g),
        "guidance": guidance,
    }
