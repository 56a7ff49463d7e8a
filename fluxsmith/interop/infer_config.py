"""A run's config for weights that come without one: what their shapes, names and neighbours say."""

import math
from typing import Any

from fluxsmith.errors import UserError
from fluxsmith.interop.diffusers_scheduler import schedule_from_diffusers
from fluxsmith.interop.infer_params import infer_params
from fluxsmith.interop.read_weights import Weights
from fluxsmith.model.flux import FluxParams

# (context_in_dim, vec_in_dim) -> text section: FLUX.1's encoders, and the lesson's.
TEXT: dict[tuple[int, int], dict[str, Any]] = {
    (4096, 768): {"t5": "google/t5-v1_1-xxl"},
    (768, 768): {"t5": "google/t5-v1_1-base", "t5_tokens": 128},
}
FLUX1_TOKENS = {True: 512, False: 256}  # dev and schnell: with a guidance input and without
# The sizes of a network that a config's model section has too.
SIZES = (
    "hidden_size", "mlp_ratio", "num_heads", "depth", "depth_single_blocks", "axes_dim", "theta",
    "qkv_bias", "guidance_embed",
)  # fmt: skip


def infer_config(weights: Weights) -> dict[str, Any]:
    """The sections of a config, as plain data. A UserError says what the user must give."""
    known = weights.settings
    params = infer_params(weights.network, weights.origin, known.get("axes_dim"))
    features = params.out_channels or params.in_channels
    latent = "autoencoder" in known or (
        params.context_in_dim == 4096 and weights.kind != "xdiffusion"
    )
    patch = 2 if latent else _patch_size(weights, features)
    model = {name: getattr(params, name) for name in SIZES}
    model |= {
        "axes_dim": list(params.axes_dim),
        "theta": known.get("theta", params.theta),
        "patch_size": patch,
        "conditioning": known.get("conditioning", "text")
        if features == params.in_channels
        else "fill",
    }
    if latent:
        autoencoder = {"kind": "flux", "weights": known.get("autoencoder")}
        data = {"source": "folder", "image_size": 1024, "channels": 3}
    else:
        autoencoder = {"kind": "pixel"}
        channels = features // patch**2
        size = known.get("image_size", max(1, 32 // patch) * patch)
        source = "mnist" if channels == 1 else "folder"
        data = {"source": source, "image_size": size, "channels": channels}
    return {
        "model": model,
        "text": _text(weights, params),
        "sample": _sample(weights, params),
        "autoencoder": autoencoder,
        "data": data,
    }


def _patch_size(weights: Weights, features: int) -> int:
    """Of pixels, from the features of a token, which are channels times patch squared."""
    patch: int = weights.settings.get("patch_size", 0)
    if patch > 0 and features % patch**2 == 0:
        return patch
    # Grey or RGB: a square is never three times a square, so at most one of them fits.
    for channels in (1, 3):
        patch = math.isqrt(features // channels)
        if patch and channels * patch**2 == features:
            return patch
    raise UserError(
        f"{weights.origin}: {features} features a token leave model.patch_size open; give a config "
        f"(--config)"
    )


def _text(weights: Weights, params: FluxParams) -> dict[str, Any]:
    """FLUX.1 attends to its padding, and so does the lesson's repository."""
    found = dict(TEXT.get((params.context_in_dim, params.vec_in_dim), {}))
    if place := weights.settings.get("text"):
        found |= {"clip": place, "t5": place}
    if not found:
        raise UserError(
            f"{weights.origin}: takes text tokens {params.context_in_dim} wide and a pooled vector "
            f"of {params.vec_in_dim}, which no known pair of encoders gives; give a config with "
            f"its text section (--config)"
        )
    tokens = FLUX1_TOKENS[params.guidance_embed]
    return {"encoder": "clip_t5", "padding": "full", "t5_tokens": tokens} | found


def _sample(weights: Weights, params: FluxParams) -> dict[str, Any]:
    """As FLUX.1 dev and schnell are sampled; the lesson's model as the lesson does."""
    if params.guidance_embed:
        sample = {"guidance_method": "embedded", "guidance": 3.5, "steps": 50, "schedule": "flux"}
    elif weights.kind == "xdiffusion":
        sample = {}
    else:
        sample = {"guidance": 1.0, "steps": 4, "schedule": "uniform"}
    scheduler = weights.settings.get("scheduler")
    if scheduler is None:
        return sample
    return sample | schedule_from_diffusers(scheduler, weights.origin)
