"""Embeddings on disk: a folder of safetensors files, each written whole, of one encoder at one
setting.

A shard holds its prompts' tokens end to end, so that one prompt's can be read without the rest, and
a checksum of each, so that what is read is what was written.
"""

import json
import uuid
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxsmith.files import write_whole
from fluxsmith.text.padding import Encoded

FORMAT = "fluxsmith-text/1"


class DamagedShardError(Exception):
    """A shard that doesn't hold what was written."""


class Shard:
    """One file, of which only the index is read at once."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError

        self.path = path
        try:
            self.prompts: list[str] = json.loads(self._file.metadata()["prompts"])
            self._length, self._real, self._needed, self._sums = (
                self._file.get_tensor(name).tolist() for name in ("length", "real", "needed", "crc")
            )
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise DamagedShardError(f"{path}: {error}") from None
        starts = torch.tensor([0, *self._length]).cumsum(0).tolist()
        whole = starts[-1] == self._file.get_slice("tokens").get_shape()[0]
        if not whole or len(self.prompts) != len(self._length):
            raise DamagedShardError(f"{path}: its index doesn't fit its tokens")
        self._starts = starts

    @cached_property
    def _file(self) -> Any:
        from safetensors import safe_open

        return safe_open(self.path, framework="pt")

    def read(self, row: int) -> Encoded:
        tokens = self._file.get_slice("tokens")[self._starts[row] : self._starts[row + 1]]
        pooled = self._file.get_slice("pooled")[row]
        if _checksum(tokens, pooled) != self._sums[row]:
            raise DamagedShardError(
                f"{self.path}: the embedding of {self.prompts[row]!r} is damaged"
            )
        return Encoded(tokens, pooled, self._real[row], self._needed[row])

    def counts(self, row: int) -> tuple[int, int]:
        """The real and the needed tokens of a prompt."""
        return self._real[row], self._needed[row]


def write_shard(folder: Path, items: Mapping[str, Encoded]) -> Path:
    """Writes the embeddings as one new file; a UserError where that can't be done."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    kept = list(items.values())
    tensors = {
        "tokens": torch.cat([item.tokens for item in kept]),  # (sum of lengths, d)
        "pooled": torch.stack([item.pooled for item in kept]),  # (n, p)
        "length": torch.tensor([len(item.tokens) for item in kept]),
        "real": torch.tensor([item.real for item in kept]),
        "needed": torch.tensor([item.needed for item in kept]),
        "crc": torch.tensor([_checksum(item.tokens, item.pooled) for item in kept]),
    }
    metadata = {"format": FORMAT, "prompts": json.dumps(list(items))}

    def write(path: Path) -> None:
        try:
            save_file(tensors, path, metadata)
        except SafetensorError as error:  # a full disk, for one
            raise OSError(str(error)) from None

    path = folder / f"{uuid.uuid4().hex}.safetensors"
    write_whole(path, write)
    return path


def _checksum(tokens: Tensor, pooled: Tensor) -> int:
    found = 0
    for tensor in (tokens, pooled):
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        found = zlib.crc32(raw.data, found)
    return found
