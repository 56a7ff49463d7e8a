"""What a pipeline is made of, built from a config and checked to fit together."""

from typing import Any

import torch

from fluxsmith import autoencoder as autoencoders
from fluxsmith import text as encoders
from fluxsmith.autoencoder import Autoencoder
from fluxsmith.config import RunConfig
from fluxsmith.errors import UserError
from fluxsmith.model.flux import FluxParams
from fluxsmith.text.encoder import TextEncoder


def build_text_encoder(config: RunConfig, device: torch.device | str) -> TextEncoder:
    """The text encoder that a config names, new where it is learned."""
    return encoders.build(config.text.encoder, torch.device(device), **config.text.settings())


def build_autoencoder(config: RunConfig, device: torch.device | str) -> Autoencoder:
    """The autoencoder that a config names, checked to fit its images."""
    settings = config.autoencoder.model_dump()
    channels, size = config.data.channels, config.data.image_size
    autoencoder = autoencoders.build(**settings, device=device, image_channels=channels)
    if autoencoder.image_channels != channels:
        raise UserError(
            f"data.channels={channels}: the autoencoder {config.autoencoder.weights} takes images "
            f"of {autoencoder.image_channels}; set data.channels={autoencoder.image_channels}"
        )
    unit = autoencoder.factor * config.model.patch_size
    if size % unit:
        options = " or ".join(str(n) for n in (size - size % unit, size - size % unit + unit) if n)
        raise UserError(
            f"data.image_size={size}: not divisible by {unit}, the autoencoder's factor "
            f"{autoencoder.factor} times model.patch_size={config.model.patch_size}; use {options}"
        )
    return autoencoder


def check_autoencoder(autoencoder: Autoencoder, metadata: dict[str, Any], origin: str) -> None:
    """Raises a UserError where a checkpoint was trained in the latents of another autoencoder."""
    trained = metadata.get("autoencoder", autoencoder.digest)  # imported weights don't say
    if trained != autoencoder.digest:
        raise UserError(
            f"autoencoder.weights: {origin} was trained with the autoencoder {trained}, and this "
            f"one is {autoencoder.digest}; name the file that it was trained with"
        )


def flux_params(config: RunConfig, autoencoder: Autoencoder, text: TextEncoder) -> FluxParams:
    """The network's sizes: those of the config, and the widths that follow from its neighbours."""
    model = config.model
    return FluxParams(
        in_channels=autoencoder.channels * model.patch_size**2,
        vec_in_dim=text.pooled_width,
        context_in_dim=text.token_width,
        hidden_size=model.hidden_size,
        mlp_ratio=model.mlp_ratio,
        num_heads=model.num_heads,
        depth=model.depth,
        depth_single_blocks=model.depth_single_blocks,
        axes_dim=tuple(model.axes_dim),
        theta=model.theta,
        qkv_bias=model.qkv_bias,
        guidance_embed=model.guidance_embed,
    )
