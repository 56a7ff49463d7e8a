"""A run's config for weights that come without one: what their shapes, names and neighbours say."""

import math
from pathlib import Path
from typing import Any

from fluxsmith.errors import UserError
from fluxsmith.interop.reading import Weights
from fluxsmith.model.flux import FluxParams
from fluxsmith.tensorfile import read_json

# (context_in_dim, vec_in_dim) -> text section: FLUX.1's encoders, and the lesson's.
TEXT: dict[tuple[int, int], dict[str, Any]] = {
    (4096, 768): {"t5": "google/t5-v1_1-xxl"},
    (768, 768): {"t5": "google/t5-v1_1-base", "t5_tokens": 128},
}
FLUX1_TOKENS = {True: 512, False: 256}  # dev and schnell: with a guidance input and without


def derive(weights: Weights, params: FluxParams) -> dict[str, Any]:
    """The sections of a config, as plain data. A UserError says what has to be given."""
    sections: dict[str, Any] = {
        "model": _model(params) | {"patch_size": _patch_size(weights, params)},
        "text": _text(weights, params),
        "sample": _sample(weights, params),
    }
    patch = sections["model"]["patch_size"]
    if _is_latent(weights, params):
        sections["autoencoder"] = {"kind": "flux", "weights": weights.settings.get("autoencoder")}
        sections["data"] = {"source": "folder", "image_size": 1024, "channels": 3}
    else:
        channels = params.in_channels // patch**2
        size = weights.settings.get("image_size") or max(1, 32 // patch) * patch
        source = "mnist" if channels == 1 else "folder"
        sections["data"] = {"source": source, "image_size": size, "channels": channels}
    return sections


def _model(params: FluxParams) -> dict[str, Any]:
    return {
        "hidden_size": params.hidden_size,
        "num_heads": params.num_heads,
        "depth": params.depth,
        "depth_single_blocks": params.depth_single_blocks,
        "axes_dim": list(params.axes_dim),
        "mlp_ratio": params.mlp_ratio,
        "theta": float(params.theta),
        "qkv_bias": params.qkv_bias,
        "guidance_embed": params.guidance_embed,
    }


def _is_latent(weights: Weights, params: FluxParams) -> bool:
    """Whether an autoencoder comes with them, or they are of FLUX.1's shape."""
    return "autoencoder" in weights.settings or (
        params.context_in_dim == 4096 and weights.kind != "xdiffusion"
    )


def _patch_size(weights: Weights, params: FluxParams) -> int:
    """From the features of a token: channels times patch squared."""
    known = weights.settings.get("patch_size")
    if isinstance(known, int) and known > 0 and params.in_channels % known**2 == 0:
        return known
    if _is_latent(weights, params):
        channels = _latent_channels(weights)
        patch = math.isqrt(params.in_channels // channels)
        if patch >= 1 and channels * patch**2 == params.in_channels:
            return patch
    else:
        for channels in (1, 3):  # a square can't be three times a square, so one of them fits
            patch = math.isqrt(params.in_channels // channels)
            if channels * patch**2 == params.in_channels:
                return patch
    raise UserError(
        f"{weights.origin}: {params.in_channels} features a token leave model.patch_size open; "
        f"give a config (--config)"
    )


def _latent_channels(weights: Weights) -> int:
    folder = weights.settings.get("autoencoder")
    if folder is None:
        return 16
    channels = read_json(Path(folder) / "config.json").get("latent_channels", 16)
    return channels if isinstance(channels, int) and channels > 0 else 16


def _text(weights: Weights, params: FluxParams) -> dict[str, Any]:
    """FLUX.1 attends to its padding, and so does the lesson's repository."""
    found: dict[str, Any] = dict(TEXT.get((params.context_in_dim, params.vec_in_dim), {}))
    folder = Path(weights.origin)
    if (folder / "text_encoder").is_dir() and (folder / "text_encoder_2").is_dir():
        found |= {"clip": str(folder), "t5": str(folder)}
    if not found:
        raise UserError(
            f"{weights.origin}: takes text tokens {params.context_in_dim} wide and a pooled vector "
            f"of {params.vec_in_dim}, which no known pair of encoders gives; give a config with "
            f"its text section (--config)"
        )
    tokens = {"t5_tokens": FLUX1_TOKENS[params.guidance_embed]}
    return {"encoder": "clip_t5", "padding": "full"} | tokens | found


def _sample(weights: Weights, params: FluxParams) -> dict[str, Any]:
    """As FLUX.1 dev and schnell are sampled; the lesson's model as the lesson does."""
    if params.guidance_embed:
        return {
            "guidance_method": "embedded",
            "guidance": 3.5,
            "steps": 50,
            "schedule": weights.settings.get("schedule", "flux"),
        }
    if weights.kind == "xdiffusion":
        return {}
    schedule = weights.settings.get("schedule", "uniform")
    return {"guidance": 1.0, "steps": 4, "schedule": schedule}
