"""Whether two configs describe the same model on the same data, as resuming needs."""

from collections.abc import Iterator, Mapping
from typing import Any

from fluxsmith.config.data_section import DataConfig
from fluxsmith.config.kinds import section_of
from fluxsmith.config.model_section import AutoencoderConfig, TextConfig
from fluxsmith.config.run_config import RunConfig
from fluxsmith.errors import UserError

# What makes a model what it is, and what decides a run's course from its first step on.
MODEL = (
    "data.source", "data.image_size", "data.channels", "text", "autoencoder", "model",
    "flow.prediction", "train.adapter",
)  # fmt: skip
COURSE = (
    "data", "text", "autoencoder", "model", "seed", "objective", "flow", "train.batch_size",
    "train.optimiser", "train.adapter",
)  # fmt: skip
WEIGHTS = (
    "data.channels",
    "text",
    "autoencoder",
    "model",
    "flow.prediction",
    "train.adapter",
)  # what they fit and mean


TEACHING = "objective.teacher", "objective.cache"  # a teacher is recognised by its digest


def free_keys(config: Mapping[str, Any]) -> list[str]:
    """The keys of a config's plain data that don't matter to a model: where its files lie, how
    they are read, how memory is saved. Pretrained encoders and autoencoders are recognised by their
    weights."""
    found = list(TEACHING)
    for section in (DataConfig, AutoencoderConfig, TextConfig):
        kind = section.kind_in(config.get(section.NAME, {}))
        keys = section_of(section, kind).KEYS if kind else None
        found += [f"{section.NAME}.{key}" for key in getattr(keys, "LOCAL", ())]
    return found


def check_same(before: RunConfig, now: RunConfig, keys: tuple[str, ...], origin: str) -> None:
    """Raises a UserError that names the first setting below `keys` in which they differ."""
    for key, then, value in differences(before, now):
        if below(key, keys):
            fork = (
                ""
                if below(key, WEIGHTS) or keys != COURSE
                else f", or start a new run from its weights with --fork {origin}"
            )
            raise UserError(
                f"{key}={value}: {origin} was trained with {key}={then}; set it back, or "
                f"use a checkpoint that fits this config{fork}"
            )


def differences(before: RunConfig, now: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Each key in which they differ, before and now, but for the free ones."""
    then, data = flat(before.model_dump()), now.model_dump()
    free = free_keys(data)
    for key, value in flat(data).items():
        if key not in free and then.get(key) != value:
            yield key, then.get(key), value


def below(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one mapping, by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
