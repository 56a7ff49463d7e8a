"""Whether two configs describe the same model on the same data, as resuming needs."""

from typing import Any

from fluxsmith.config.data_section import DataConfig
from fluxsmith.config.kinds import section_of
from fluxsmith.config.model_section import AutoencoderConfig, TextConfig
from fluxsmith.config.run_config import RunConfig
from fluxsmith.errors import UserError

# What makes a model what it is, and what decides a run's course from its first step on.
MODEL = (
    "data.source", "data.image_size", "data.channels", "text", "autoencoder", "model",
    "flow.prediction",
)  # fmt: skip
COURSE = (
    "data", "text", "autoencoder", "model", "seed", "objective", "flow", "train.batch_size",
    "train.optimiser",
)  # fmt: skip
WEIGHTS = (
    "data.channels",
    "text",
    "autoencoder",
    "model",
    "flow.prediction",
)  # what they fit and mean


def free_keys() -> list[str]:
    """The keys that don't matter to a model: where its files lie, how they are read, how memory is
    saved. Pretrained encoders and autoencoders are recognised by their weights."""
    found = [
        f"{section.NAME}.{key}"
        for section in (DataConfig, AutoencoderConfig, TextConfig)
        for kind in section.kinds()
        for key in getattr(section_of(section, kind).KEYS, "LOCAL", ())
    ]
    return list(dict.fromkeys(found))


def check_same(before: RunConfig, now: RunConfig, keys: tuple[str, ...], origin: str) -> None:
    """Raises a UserError that names the first setting below `keys` in which they differ."""
    then, free = _flat(before.model_dump()), free_keys()
    for key, value in _flat(now.model_dump()).items():
        if _below(key, keys) and key not in free and then.get(key) != value:
            fork = (
                ""
                if _below(key, WEIGHTS) or keys != COURSE
                else f", or start a new run from its weights with --fork {origin}"
            )
            raise UserError(
                f"{key}={value}: {origin} was trained with {key}={then.get(key)}; set it back, or "
                f"use a checkpoint that fits this config{fork}"
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
