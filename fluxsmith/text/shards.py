"""Embeddings on disk: a folder of safetensors files, each written whole, of one encoder at one
setting.

A shard holds its prompts' tokens end to end, so that one prompt's can be read without the rest, and
a checksum of each, so that what is read is what was written.
"""

import itertools
import json
import uuid
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxsmith.files import write_whole
from fluxsmith.nesting import parse_json
from fluxsmith.text.padding import Encoded

FORMAT = "fluxsmith-text/1"
DTYPES = {"F32", "BF16", "F16"}  # as safetensors calls them


class DamagedShardError(Exception):
    """A shard that doesn't hold what was written."""


class Shard:
    """One file, of which only the index is read at once."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError

        self.path = path
        try:
            self.prompts: list[str] = parse_json(self._file.metadata()["prompts"])
            index = [self._file.get_tensor(name) for name in ("length", "real", "needed", "crc")]
            parts = [self._file.get_slice(name) for name in ("tokens", "pooled")]
            tokens, pooled = (part.get_shape() for part in parts)
            kinds = {part.get_dtype() for part in parts}
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise DamagedShardError(f"{path}: {error}") from None
        if not kinds <= DTYPES or not _fits(self.prompts, index, tokens, pooled):
            raise DamagedShardError(f"{path}: its index doesn't fit its tokens")
        self.widths = [tokens[-1], pooled[-1]]
        self._length, self._real, self._needed, self._sums = (part.tolist() for part in index)
        self._starts = [0, *itertools.accumulate(self._length)]

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


def _fits(
    prompts: object, index: Sequence[Tensor], tokens: Sequence[int], pooled: Sequence[int]
) -> bool:
    """Whether an index is one, of as many prompts as there are tokens for."""
    if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
        return False
    if any(part.dtype != torch.int64 or part.shape != (len(prompts),) for part in index):
        return False
    lengths, real, _, _ = (part.tolist() for part in index)
    ordered = all(0 <= n <= length for n, length in zip(real, lengths, strict=True))
    return (
        ordered
        and [len(tokens), len(pooled)] == [2, 2]
        and [sum(lengths), len(prompts)] == [*tokens[:-1], *pooled[:-1]]
    )


def _checksum(tokens: Tensor, pooled: Tensor) -> int:
    found = 0
    for tensor in (tokens, pooled):
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        found = zlib.crc32(raw.data, found)
    return found
