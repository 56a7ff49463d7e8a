"""Where tensors are kept for later runs: embeddings of text, latents of pictures; and digests of
the models that made them."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxsmith.device import cache_folder
from fluxsmith.errors import UserError
from fluxsmith.storage.files import make_folder, parse_mapping, write_text
from fluxsmith.storage.tensor_cache import TensorCache

DIGESTS = "digests.json"  # beside the folders
SETTINGS = {"text": "text.cache", "latents": "autoencoder.cache"}  # by what is kept


class Store:
    """Tensors and digests below `root`; None keeps them in memory."""

    def __init__(self, root: Path | None, setting: str) -> None:
        self.root, self._setting = root, setting
        self._digests: dict[str, str] = {}

    def digest(self, key: str) -> str | None:
        """The digest that was noted under this key."""
        if key not in self._digests and self.root is not None:
            self._digests |= _read_object(self.root / DIGESTS)
        return self._digests.get(key)

    def note_digest(self, key: str, digest: str) -> None:
        if self.digest(key) == digest:
            return
        self._digests[key] = digest
        if self.root is not None:
            with contextlib.suppress(UserError):  # can't be written: it is computed again next time
                make_folder(self.root, self._setting)
                file = self.root / DIGESTS
                write_text(file, json.dumps(_read_object(file) | {key: digest}, indent=2))

    def open(self, name: str, about: Mapping[str, Any]) -> TensorCache:
        """The tensors that depend on `about`, in the folder of that name."""
        return TensorCache(self.root and self.root / name, about, self._setting)


def open_store(kind: str, where: str) -> Store:
    """The store of text or of latents that a setting names: a folder, `auto` for the usual one; of
    text also `memory`."""
    root = cache_folder() / kind if where == "auto" else Path(where).expanduser()
    return Store(None if (kind, where) == ("text", "memory") else root, SETTINGS[kind])


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or something else."""
    try:
        return parse_mapping(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
