"""Each prompt is encoded once: its embedding is kept in memory as far as that goes, and on disk for
later runs.

The folder on disk is named by what the embeddings depend on, so those of another encoder, length or
dtype are never met. Runs may share it: every file is written whole under a name of its own.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxsmith.files import make_folder, write_text
from fluxsmith.text.identity import ABOUT
from fluxsmith.text.padding import Encoded
from fluxsmith.text.shards import DamagedShardError, Shard, write_shard

MEMORY_BYTES = 2 * 1024**3  # embeddings beyond that are read from disk again, least used first
SHARD_BYTES = 64 * 1024**2
SHARD_PROMPTS = 4096

log = logging.getLogger(__name__)


class EmbeddingCache:
    """The embeddings of one encoder at one setting, which `about` describes.

    `folder` is where they lie on disk; None keeps them in memory alone.
    """

    def __init__(self, folder: Path | None, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self._about = about
        self._memory: OrderedDict[str, Encoded] = OrderedDict()
        self._bytes = 0
        self._counts: dict[str, tuple[int, int]] = {}  # of what was put; outlives its embedding
        self._pending: dict[str, Encoded] = {}  # encoded, not on disk yet
        self._pending_bytes = 0
        self._shards: list[Shard] = []
        self._on_disk: dict[str, tuple[Shard, int]] = {}
        if self.folder is not None:
            for path in sorted(self.folder.glob("*.safetensors")):
                self._open(path)

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._memory or prompt in self._pending or prompt in self._on_disk

    def __len__(self) -> int:
        return len(self._on_disk.keys() | self._memory.keys() | self._pending.keys())

    def get(self, prompt: str) -> Encoded | None:
        """The embedding; None where it isn't there, or damaged on disk, which is said."""
        if prompt in self._memory:
            self._memory.move_to_end(prompt)
            return self._memory[prompt]
        if prompt in self._pending:
            return self._pending[prompt]
        if prompt not in self._on_disk:
            return None
        shard, row = self._on_disk[prompt]
        try:
            found = shard.read(row)
        except DamagedShardError as error:
            self._give_up(shard, error)
            return self.get(prompt)
        self._remember(prompt, found)
        return found

    def counts(self, prompt: str) -> tuple[int, int] | None:
        """The real and the needed tokens of a prompt, where they are known."""
        if prompt in self._counts:
            return self._counts[prompt]
        if prompt not in self._on_disk:
            return None
        shard, row = self._on_disk[prompt]
        return shard.counts(row)

    def put(self, prompt: str, encoded: Encoded) -> None:
        self._remember(prompt, encoded)
        self._counts[prompt] = encoded.real, encoded.needed
        if self.folder is None:
            return
        self._pending[prompt] = encoded
        self._pending_bytes += encoded.nbytes

    @property
    def is_due(self) -> bool:
        """Whether what isn't on disk yet would make a shard."""
        return self._pending_bytes >= SHARD_BYTES or len(self._pending) >= SHARD_PROMPTS

    def keep_in_memory(self) -> None:
        """Writes no more to disk; what lies there is still read."""
        self.folder, self._pending, self._pending_bytes = None, {}, 0

    def make(self) -> None:
        """Makes the folder on disk; a UserError where nothing can be written to it."""
        if self.folder is None:
            return
        make_folder(self.folder, "text.cache to another, or to `memory`")
        about = self.folder / ABOUT
        if not about.exists():
            write_text(about, json.dumps(self._about, indent=2) + "\n")

    def flush(self) -> None:
        """Writes what isn't on disk yet; a UserError where it can't be written."""
        if self.folder is None or not self._pending:
            return
        self.make()
        path = write_shard(self.folder, self._pending)
        self._pending, self._pending_bytes = {}, 0
        self._open(path)

    def _open(self, path: Path) -> None:
        try:
            shard = Shard(path)
            if shard.widths != self._about.get("widths", shard.widths):
                raise DamagedShardError(f"{path}: its embeddings are {shard.widths} wide")
        except DamagedShardError as error:
            _warn(error)
            return
        self._shards.append(shard)
        self._index(shard)

    def _index(self, shard: Shard) -> None:
        for row, prompt in enumerate(shard.prompts):
            self._on_disk[prompt] = shard, row

    def _give_up(self, damaged: Shard, error: DamagedShardError) -> None:
        """Leaves a damaged shard out; what another holds as well is found there."""
        self._shards.remove(damaged)
        self._on_disk = {}
        for shard in self._shards:
            self._index(shard)
        _warn(error)

    def _remember(self, prompt: str, encoded: Encoded) -> None:
        self._memory[prompt] = encoded
        self._bytes += encoded.nbytes
        while self._bytes > MEMORY_BYTES and len(self._memory) > 1:
            _, oldest = self._memory.popitem(last=False)
            self._bytes -= oldest.nbytes


def _warn(error: DamagedShardError) -> None:
    log.warning("text cache: %s; the file is left out, and can be deleted", error)
