"""Whether two configs describe the same model on the same data, as resuming needs."""

from typing import Any

from fluxsmith.config.sections import RunConfig
from fluxsmith.errors import UserError

# What makes a model what it is, and what decides a run's course from its first step on.
MODEL = ("data.source", "data.image_size", "data.channels", "text", "autoencoder", "model")
COURSE = ("data", "text", "autoencoder", "model", "seed", "flow", "train.batch_size")
WEIGHTS = ("data.channels", "text", "autoencoder", "model")  # what they fit and mean
# Where files lie is not what they hold, nor does it matter how they are read and memory is saved;
# pretrained encoders are told by their weights.
FREE = (
    "data.path", "data.test_path", "data.workers", "data.in_memory", "data.max_bad",
    "autoencoder.weights", "autoencoder.tile_size", "autoencoder.max_batch",
    "text.cache", "text.clip", "text.clip_device", "text.t5", "text.t5_device", "text.pretrained",
    "text.pretrained_device",
)  # fmt: skip


def check_same(before: RunConfig, now: RunConfig, keys: tuple[str, ...], origin: str) -> None:
    """Raises a UserError that names the first setting below `keys` in which they differ."""
    then = _flat(before.model_dump())
    for key, value in _flat(now.model_dump()).items():
        if _below(key, keys) and key not in FREE and then[key] != value:
            fork = (
                ""
                if _below(key, WEIGHTS) or keys != COURSE
                else f", or start a new run from its weights with --fork {origin}"
            )
            raise UserError(
                f"{key}={value}: {origin} was trained with {key}={then[key]}; set it back, or use "
                f"a checkpoint that fits this config{fork}"
            )


def _below(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
