"""The latents of a run's pictures, encoded once by `fluxsmith encode`; several processes, such as
those of torchrun, share the work."""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fluxsmith.autoencoder import Autoencoder
from fluxsmith.config import RunConfig
from fluxsmith.data.images import Shape, to_unit
from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.latents import LATENT, READING, decoder, latent_key, unreadable_key
from fluxsmith.data.loading import find_buckets
from fluxsmith.data.pictures import decode, in_order
from fluxsmith.data.records import (
    DataSettings,
    EncodedPicture,
    PictureError,
    ReadingSettings,
    Record,
    Records,
    Shards,
)
from fluxsmith.data.sources import open_source
from fluxsmith.device import pick_device
from fluxsmith.errors import UserError
from fluxsmith.pipeline import build_autoencoder
from fluxsmith.storage.stores import open_store
from fluxsmith.storage.tensor_cache import TensorCache
from fluxsmith.training.console import ProgressConsole

GROUP = 8  # pictures of one shape that go through the encoder at once
AHEAD = 64  # pictures that are decoded before they are asked for


class Job(NamedTuple):
    """A picture to encode."""

    key: str  # of its latent
    name: str
    picture: EncodedPicture
    shape: Shape


def keeps_latents(config: RunConfig) -> bool:
    """Whether a config names a cache of latents."""
    return getattr(config.autoencoder, "cache", "none") != "none"


def open_latents(config: RunConfig, autoencoder: Autoencoder | None = None) -> TensorCache | None:
    """The cache that a config names; None where it names none."""
    if not keeps_latents(config):
        return None
    section, autoencoder = config.autoencoder, autoencoder or build_autoencoder(config, "cpu")
    about = {
        "autoencoder": autoencoder.digest,
        "tile_size": section.tile_size,
        "dtype": section.latents,
        "channels": config.data.channels,
        "resize": config.data.resize,
        "reading": READING,
    }
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return open_store("latents", section.cache).open(name, about)


def encode_latents(config: RunConfig) -> list[str]:
    """Puts the latents of a config's training pictures into their cache, of several processes each
    its share; returns what was done. Pictures that can't be read are noted as such, and tried again
    the next time."""
    device, settings = _own_device(config.device), cast(ReadingSettings, config.data)
    autoencoder = build_autoencoder(config, device)
    cache = open_latents(config, autoencoder)
    assert cache is not None
    source = open_source(config.data, "train")
    decoder(source, settings, cache)  # refuses what has no latents of its own
    cache.make()  # fails now, not when all is encoded
    there = 0

    def missing() -> Iterator[Job]:
        nonlocal there
        for record, shape in _own_share(source, settings):
            key = latent_key(record, shape)
            if cache.get(key) is None:  # looks at the checksum too
                yield Job(key, record.name, record.picture, shape)
            else:
                there += 1

    encoding = _Encoding(autoencoder, device, cache)
    with ThreadPoolExecutor(settings.workers) as pool, ProgressConsole() as console:
        jobs = (partial(_decode, job, settings) for job in missing())
        try:
            for job, pixels in in_order(pool, jobs, AHEAD):
                encoding.add(job, pixels)
                if encoding.made:
                    console.report(f"encoded {encoding.made:,} pictures", None)
            encoding.finish()
        finally:
            cache.flush(strict=True)
    lines = [f"latents     {encoding.made:,} pictures encoded now, {there:,} were there"]
    lines[0] += f"; in {cache.folder}"
    if encoding.bad:
        lines.append(f"latents     {len(encoding.bad):,} can't be read, such as {encoding.bad[0]}")
    return lines


def _own_device(name: str) -> torch.device:
    """The device of this name; where torchrun started several processes, this one's of the GPUs."""
    device, local = pick_device(name), os.environ.get("LOCAL_RANK")
    if device.type == "cuda" and device.index is None and local is not None:
        return pick_device(f"cuda:{local}")
    return device


class _Encoding:
    """Encodes pictures, those of one shape together."""

    def __init__(self, autoencoder: Autoencoder, device: torch.device, cache: TensorCache) -> None:
        self.autoencoder, self.device, self.cache = autoencoder, device, cache
        self.made = 0
        self.bad: list[str] = []  # names and reasons
        self._group: list[tuple[Job, Tensor]] = []

    def add(self, job: Job, pixels: Tensor | PictureError) -> None:
        if isinstance(pixels, PictureError):
            self.bad.append(f"{job.name}: {pixels}")
            if (key := unreadable_key(job.key)) not in self.cache:
                self._keep(key, torch.empty(0, dtype=self.autoencoder.dtype))
            return
        if len(self._group) == GROUP or (self._group and self._group[0][0].shape != job.shape):
            self.finish()
        self._group.append((job, pixels))

    def finish(self) -> None:
        """Encodes what was added last."""
        if not self._group:
            return
        jobs, pixels = zip(*self._group, strict=True)
        x0 = self.autoencoder.encode(to_unit(torch.stack(pixels).to(self.device)))
        latents = x0.to(self.autoencoder.dtype).cpu()
        for job, latent in zip(jobs, latents, strict=True):
            if not latent.isfinite().all():
                raise UserError(f"autoencoder.weights: it overflows at {job.name}; leave that out")
            self._keep(job.key, latent.clone())
        self.made += len(jobs)
        self._group = []

    def _keep(self, key: str, latent: Tensor) -> None:
        self.cache.put(key, {LATENT: latent}, strict=True)


def _decode(job: Job, settings: DataSettings) -> tuple[Job, Tensor | PictureError]:
    try:
        return job, decode(job.picture, job.shape, settings.channels, settings.resize, 0.5)
    except PictureError as error:
        return job, error


def _own_share(
    source: Records | Shards | ImageSet, settings: ReadingSettings
) -> Iterator[tuple[Record, Shape]]:
    """The training pictures that this process encodes, each with the shape it is seen in."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if isinstance(source, Shards):
        for shard in range(rank, len(source), world):
            for _, record in source.read(shard, 0):
                yield record, (settings.image_size, settings.image_size)
        return
    assert not isinstance(source, ImageSet)
    for shape, places in find_buckets(source, settings).items():
        for place in places[rank::world]:
            yield source[place], shape
