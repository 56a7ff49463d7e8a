"""The model to draw with: a checkpoint of ours, or a config and the released weights of its
network."""

from collections.abc import Sequence
from pathlib import Path

from fluxsmith import checkpoint as checkpoints
from fluxsmith.config import read_config
from fluxsmith.errors import UserError
from fluxsmith.interop.released import check_options, load_released, place, requested_dtype
from fluxsmith.pipeline import Pipeline


def open_pipeline(
    source: Path,
    prompts: Sequence[str],
    *,
    weights: str = "ema",
    device: str = "auto",
    dtype: str | None = None,
    offload: str = "auto",
    overrides: Sequence[str] = (),
) -> tuple[Pipeline, Path]:
    """The pipeline, and the file that it came from.

    `weights` is ema or model for a checkpoint (or a run's folder), and a path for a config.
    """
    check_options(dtype, offload)
    if source.suffix in (".yaml", ".yml"):
        if weights in ("ema", "model"):
            raise UserError(
                f"{source}: is a config; say with --weights which file brings the network's "
                f"weights, or give a checkpoint in its place"
            )
        if not prompts:
            raise UserError("released weights come without captions to draw from; give --prompt")
        config = read_config(source, overrides)
        on = config.device if device == "auto" else device
        pipeline = load_released(
            config, Path(weights), prompts, device=on, dtype=dtype, offload=offload
        )
        return pipeline, source
    if weights not in ("ema", "model"):
        raise UserError(
            f"--weights {weights}: must be ema or model for a checkpoint; a file of weights goes "
            f"with a config, such as configs/flux1/schnell.yaml"
        )
    path = checkpoints.newest(source)
    pipeline = Pipeline.from_checkpoint(path, device, weights, overrides)
    if dtype is not None or offload == "blocks":
        place(pipeline.network, pipeline.device, requested_dtype(pipeline.network, dtype), offload)
    return pipeline, path
