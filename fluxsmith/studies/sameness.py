"""Whether arms differ, and whether runs that are there are still those that are declared."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from fluxsmith.config import RunConfig
from fluxsmith.config.comparing import below, differences, flat, free_keys
from fluxsmith.config.reading import build_config
from fluxsmith.distillation.teacher import Teacher
from fluxsmith.errors import UserError
from fluxsmith.evaluation.classifier import data_digest
from fluxsmith.evaluation.samples import Reference
from fluxsmith.pipeline import Pipeline
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.files import parse_mapping, read_whole
from fluxsmith.storage.tensor_files import DamagedFileError
from fluxsmith.studies.declaration import OWN

# What decides of a run's files, messages, memory and speed alone.
UNSEEN = (
    "train.log_every", "train.loggers", "train.sample_every", "train.checkpoint_every",
    "train.checkpoint_format", "train.keep_checkpoints", "train.keep_every", "train.snapshots",
    "train.background_save", "train.on_save_error", "train.diagnose", "evaluate",
    "data.workers", "data.in_memory", "data.max_bad", "autoencoder.cache", "autoencoder.max_batch",
    "objective.cache", "text.cache", "text.clip_device", "text.t5_device", "text.pretrained_device",
)  # fmt: skip


def refuse_twins(configs: Mapping[str, RunConfig]) -> None:
    decides = {
        arm: {k: v for k, v in flat(config.model_dump()).items() if not below(k, UNSEEN)}
        for arm, config in configs.items()
    }
    for (a, one), (b, other) in combinations(decides.items(), 2):
        if one == other:
            raise UserError(f"arms.{b}: the same runs as arms.{a}; remove one or change it")


def changes(folder: Path, before: RunConfig, now: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Each key in which the run in a folder was made otherwise, before and now. Data, encoders and
    a teacher may have been moved: where such a key differs, their contents are compared."""
    yield from differences(before, now)
    then, here = flat(before.model_dump()), flat(now.model_dump())
    for key in free_keys(now.model_dump()):
        if then.get(key) != here.get(key) and not below(key, UNSEEN):
            section = key.partition(".")[0]
            known = _contents_then(section, folder)
            if known is not None and known != _contents(section, text_of(now)):
                yield key, then.get(key), here.get(key)


def text_of(config: RunConfig) -> str:
    """Without keys at their defaults, so that a key that a later version adds changes nothing."""
    return config.model_dump_json(exclude_defaults=True, exclude=set(OWN))


def _contents_then(section: str, folder: Path) -> Any:
    """A digest of the files of a section that a run was made with; None where nothing tells."""
    if section == "data":
        drawings = (read_whole(folder / "evaluation.json") or {}).get("drawings", {}).values()
        told = {each["provenance"]["data_digest"] for each in drawings if "provenance" in each}
        return told or None
    with contextlib.suppress(DamagedFileError):  # such a run is made again
        for _, path in checkpoints.find(folder)[-1:]:
            return _told(section, checkpoints.load(path)["metadata"])
    return None


@cache  # the runs of an arm have the same
def _contents(section: str, config: str) -> Any:
    """The same of those that a config names now."""
    now = build_config(parse_mapping(config), "the config")
    if section == "data":
        reference = Reference(now)
        return {data_digest(reference.train, reference.test)}
    if section == "objective":
        return Teacher(now.objective.teacher).digest
    pipeline = Pipeline.build(now)
    about = {"autoencoder": pipeline.autoencoder.digest, **pipeline.frozen_metadata()}
    return _told(section, about)


def _told(section: str, metadata: Mapping[str, Any]) -> Any:
    if section == "text":
        return {key: part["digest"] for key, part in metadata.get("text", {}).items()} or None
    return metadata.get("teacher" if section == "objective" else section)
