"""From a released or foreign model to a checkpoint of ours, ready to sample, measure and train on.

Weights keep their dtype and their bytes.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fluxsmith import checkpoint as checkpoints
from fluxsmith.config import RunConfig, read_config
from fluxsmith.config.reading import build_config, with_overrides
from fluxsmith.errors import UserError
from fluxsmith.files import make_folder
from fluxsmith.interop.deriving import derive
from fluxsmith.interop.fitting import check_fits, params_of
from fluxsmith.interop.reading import Weights, read_weights, require_text
from fluxsmith.version import __version__


def import_model(
    source: Path, out: Path, config: Path | None = None, overrides: Sequence[str] = ()
) -> Weights:
    """Writes the checkpoint `out`; its config is the one given, the one that the weights carry, or
    what follows from them."""
    if out.suffix != ".pt":
        raise UserError(f"{out}: a checkpoint is one file; let its name end with .pt")
    if out.exists():
        raise UserError(f"{out}: is there already; name a new file, or delete it first")
    weights = read_weights(source)
    settings = config_for(weights, out, config, overrides)
    check_model(weights, settings)
    make_folder(out.parent, "OUT")
    checkpoints.save(out, contents(weights, settings))
    return weights


def config_for(
    weights: Weights, out: Path, config: Path | None, overrides: Sequence[str]
) -> RunConfig:
    if config is not None:
        return read_config(config, overrides)
    if weights.config is not None:
        data = dict(weights.config)
    else:
        check_settings(weights)
        axes = weights.settings.get("axes_dim")
        params = params_of(weights.network, weights.origin, tuple(axes) if axes else None)
        if weights.settings.get("theta"):
            params = replace(params, theta=float(weights.settings["theta"]))
        data = derive(weights, params)
    data |= {"name": out.stem, "output_dir": str(out.parent / out.stem)}
    return build_config(with_overrides(data, overrides), origin=weights.origin)


def check_settings(weights: Weights) -> None:
    """Raises a UserError for what a stranger's file says of its network and can't mean."""
    for key, value in weights.settings.items():
        if key == "axes_dim":
            sound = isinstance(value, (list, tuple)) and all(map(_is_size, value))
        elif key in ("patch_size", "image_size"):
            sound = value is None or _is_size(value)
        elif key == "theta":
            sound = value is None or _is_size(value) or (isinstance(value, float) and value > 0)
        else:
            sound = True
        if not sound:
            raise UserError(
                f"{weights.origin}: its {key} is {str(value)[:40]!r}, which no model has; give a "
                f"config (--config)"
            )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def check_model(weights: Weights, config: RunConfig) -> None:
    """Raises a UserError where the weights aren't those of the config's model.

    The widths of text and latents are taken from the weights: encoders and autoencoder, which need
    not be here yet, are held against them when the checkpoint is used.
    """
    model = config.model
    found = params_of(weights.network, weights.origin, tuple(model.axes_dim))
    expected = replace(
        found,
        hidden_size=model.hidden_size,
        num_heads=model.num_heads,
        mlp_ratio=model.mlp_ratio,
        depth=model.depth,
        depth_single_blocks=model.depth_single_blocks,
        qkv_bias=model.qkv_bias,
        guidance_embed=model.guidance_embed,
        out_channels=None,
    )
    if config.autoencoder.kind == "pixel":
        expected = replace(expected, in_channels=config.data.channels * model.patch_size**2)
    check_fits(weights.network, expected, weights.origin)
    require_text(weights, config.text.encoder)


def contents(weights: Weights, config: RunConfig) -> dict[str, Any]:
    """A checkpoint at the weights' step, without the state of a training run."""
    tensors = {f"network.{name}": tensor for name, tensor in weights.network.items()}
    tensors |= {f"text.{name}": tensor for name, tensor in weights.text.items()}
    return {
        "format": checkpoints.FORMAT,
        "step": weights.step,
        "images_seen": 0,
        "config": config.model_dump(),
        "model": tensors,
        "ema": tensors,
        "optimizer": {},
        "data": {},
        "window": {},
        "metadata": {
            **weights.metadata,
            "fluxsmith": __version__,
            "torch": torch.__version__.partition("+")[0],
            "imported": {"kind": weights.kind, "name": Path(weights.origin).name},
        },
    }
