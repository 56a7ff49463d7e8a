"""Latents of pictures on disk, kept so that each picture is encoded once.

There is a folder for each autoencoder at one setting, named by what its latents depend on. It holds
shards, safetensors files whose headers are the index: each latent is a tensor under its key. Shards
are written whole under names of their own, so that several processes may fill one folder, and a
process that is cut off leaves those that it has written. Each latent has a checksum.
"""

import contextlib
import hashlib
import json
import logging
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxsmith.device import cache_folder
from fluxsmith.storage.files import make_folder
from fluxsmith.storage.tensor_files import write_tensors

SHARD_BYTES = 64 * 1024**2  # of latents, at least, in a shard
FORMAT = "fluxsmith-latents/1"

log = logging.getLogger(__name__)


class LatentStore:
    """The latents that depend on `about`, in a folder of their own below `root`."""

    def __init__(self, root: str, about: Mapping[str, Any]) -> None:
        self._about = json.dumps({"format": FORMAT, **about}, sort_keys=True)
        below = cache_folder() / "latents" if root == "auto" else Path(root).expanduser()
        self.folder = below / hashlib.sha256(self._about.encode()).hexdigest()[:16]
        # The open files that hold a key, each with its checksum: more than one where a latent was
        # damaged and made again, or made by two processes.
        self._files: dict[str, list[tuple[Any, int]]] = {}
        self._opened: set[Path] = set()
        self._new: dict[str, Tensor] = {}
        self._bytes = 0  # of these
        self.refresh()

    def refresh(self) -> None:
        """Takes note of shards that were written since, by other processes too."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in self._opened:
                self._opened.add(path)
                self._open(path)

    def __contains__(self, key: str) -> bool:
        return bool(self._files.get(key))

    def __len__(self) -> int:
        return len(self._files)

    def get(self, key: str) -> Tensor | None:
        """The latent; None where it is not there, or not as it was written."""
        for place in reversed([*self._files.get(key, [])]):
            file, checksum = place
            with contextlib.suppress(Exception):  # of safetensors, for a file that is cut short now
                found: Tensor = file.get_tensor(key)
                if _checksum(found) == checksum:
                    return found
            with contextlib.suppress(ValueError):  # another thread has seen it too
                self._files[key].remove(place)
        return None

    def put(self, key: str, latent: Tensor) -> None:
        """On disk when its shard is full, or after `flush`."""
        self._new[key] = latent.contiguous()
        self._bytes += latent.nbytes
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what isn't on disk yet; a UserError where that can't be done."""
        if self._new:
            sums = json.dumps({key: _checksum(latent) for key, latent in self._new.items()})
            path = self.folder / f"{uuid.uuid4().hex}.safetensors"
            make_folder(self.folder, "autoencoder.cache to another")
            write_tensors(path, self._new, {"about": self._about, "checksums": sums})
            self._new, self._bytes = {}, 0
        self.refresh()

    def _open(self, path: Path) -> None:
        """Takes note of what a shard holds. Whatever is wrong with it, it is left out."""
        from safetensors import safe_open

        try:
            file = safe_open(path, framework="pt")
            told = file.metadata()
            if told["about"] != self._about:
                raise ValueError("it is another autoencoder's, or was made at another setting")
            sums = json.loads(told["checksums"])
            found = {key: (file, int(sums[key])) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except Exception as error:  # for any part that isn't what it should be
            log.warning("latents: %s: %s; it is left out, and can be deleted", path, error)
            return
        for key, place in found.items():
            self._files.setdefault(key, []).append(place)


def _checksum(latent: Tensor) -> int:
    """Of its dtype, shape and bytes."""
    about = f"{latent.dtype} {tuple(latent.shape)}".encode()
    raw = latent.contiguous().view(torch.uint8).numpy().tobytes()
    return zlib.crc32(raw, zlib.crc32(about))
