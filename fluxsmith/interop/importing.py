"""From a released or foreign model to a checkpoint of ours, ready to sample, measure and train on.

Weights keep their dtype and their bytes.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fluxsmith.config import RunConfig, read_config
from fluxsmith.config.places import absolute, portable_name
from fluxsmith.config.reading import build_config, with_overrides
from fluxsmith.errors import UserError
from fluxsmith.interop.infer_config import SIZES, infer_config
from fluxsmith.interop.infer_params import check_fits, infer_params
from fluxsmith.interop.read_weights import Weights, read_weights, require_text
from fluxsmith.pipeline import image_widths
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.files import make_folder, refuse_existing
from fluxsmith.version import __version__


def import_model(
    source: Path, out: Path, config: Path | None = None, overrides: Sequence[str] = ()
) -> Weights:
    """Writes the checkpoint `out`. Its config is the one given, else the one that the weights
    carry, else what can be inferred from them."""
    if out.suffix != ".pt":
        raise UserError(f"{out}: a checkpoint is one file; let its name end with .pt")
    refuse_existing(out)
    weights = read_weights(source)
    if config is not None:
        settings = read_config(config, overrides)
    else:
        data = infer_config(weights) if weights.config is None else dict(weights.config)
        data |= {"name": out.stem, "output_dir": str(out.parent / out.stem)}
        saved = weights.config is not None
        settings = build_config(with_overrides(data, overrides), weights.origin, saved)
    settings = build_config(absolute(settings.model_dump()), weights.origin)
    check_model(weights, settings)
    make_folder(out.parent, "OUT")
    checkpoints.save(out, contents(weights, settings))
    return weights


def check_model(weights: Weights, config: RunConfig) -> None:
    """Raises a UserError if the weights aren't those of the config's model.

    Text encoders and autoencoder need not be here yet, so the widths of text and latents are those
    of the weights; they are checked when the checkpoint is used.
    """
    model = config.model
    found = infer_params(weights.network, weights.origin, tuple(model.axes_dim))
    sizes = {name: getattr(model, name) for name in SIZES}
    if (model.conditioning == "fill") != (found.out_channels is not None):
        raise UserError(
            f"model.conditioning={model.conditioning}: {weights.origin} takes "
            f"{found.in_channels} features of an image token and gives "
            f"{found.out_channels or found.in_channels}, of which a fill model alone takes more"
        )
    given = weights.conditioning if weights.config or "conditioning" in weights.settings else None
    told = {"model.conditioning": given, "flow.prediction": weights.config and weights.prediction}
    asked = {"model.conditioning": model.conditioning, "flow.prediction": config.flow.prediction}
    for key, known in told.items():
        if known and known != asked[key]:
            raise UserError(
                f"{key}={asked[key]}: {weights.origin} was trained with {known}; set {key}={known}"
            )
    if config.autoencoder.kind == "pixel":
        widths = image_widths(config, config.data.channels, factor=1)
        sizes |= zip(("in_channels", "out_channels"), widths, strict=True)
    check_fits(weights.network, replace(found, **sizes), weights.origin)
    require_text(weights, config.text.encoder)


def contents(weights: Weights, config: RunConfig) -> dict[str, Any]:
    """A checkpoint at the weights' step, without the state of a training run."""
    return {
        "format": checkpoints.FORMAT,
        "step": weights.step,
        "images_seen": 0,
        "config": config.model_dump(),
        "model": weights.tensors(),
        "ema": weights.tensors(),
        "optimizer": {},
        "data": {},
        "window": {},
        "metadata": {
            **{k: v for k, v in weights.metadata.items() if k != checkpoints.STORED},
            "fluxsmith": __version__,
            "torch": torch.__version__.partition("+")[0],
            "imported": {"kind": weights.kind, "name": portable_name(weights.origin)},
        },
    }
