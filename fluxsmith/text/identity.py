"""Which encoders a run uses, identified by digests of their weights and tokenizers. An encoder need
not be loaded if an earlier run has noted its digest in the store, or a checkpoint names it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fluxsmith.errors import UserError
from fluxsmith.text.cache import Store
from fluxsmith.text.pretrained import Pretrained


class Identity:
    """The digests of the encoders `parts`, by the name of their key in the text section."""

    def __init__(self, parts: Mapping[str, Pretrained], store: Store) -> None:
        self._parts, self._store = parts, store
        self._digests: dict[str, str] = {}  # that the cache is looked up by
        self._expected: Mapping[str, str] = {}  # by a checkpoint
        self._origin = ""

    def expect(self, identity: Mapping[str, Mapping[str, str]], origin: str) -> None:
        """The encoders that the checkpoint `origin` was trained with. Others are a UserError: at
        once where they are known by now, and otherwise as soon as they are loaded."""
        self._expected = {key: entry["digest"] for key, entry in identity.items()}
        self._origin = origin
        for key in self._parts:
            self._compare(key, self._known(key))

    def digests(self) -> Mapping[str, str]:
        """The digest of each encoder; they are loaded where it isn't noted."""
        if not self._digests:
            self._digests = self.noted() or self.confirm()
        return self._digests

    def metadata(self) -> dict[str, dict[str, str]]:
        """The name and digest of each encoder, as a checkpoint keeps them."""
        digests, parts = self.digests(), self._parts.items()
        return {key: {"name": part.name, "digest": digests[key]} for key, part in parts}

    def noted(self) -> dict[str, str] | None:
        """The digests as an earlier run noted them, or the checkpoint names them; of an encoder
        that isn't here, the last one of its name. None where one isn't known so."""
        found = {}
        for key, part in self._parts.items():
            digest = self._known(key) or self._expected.get(key)
            if digest is None and part.fingerprint() is None:
                digest = self._store.digest(part.label)
            if digest is None:
                return None
            found[key] = digest
        return found

    def confirm(self) -> dict[str, str]:
        """The digests of the encoders themselves, which load where theirs isn't noted. A UserError
        where they are others than expected, or than the cache was looked up by."""
        found = {}
        for key, part in self._parts.items():
            found[key] = self._known(key) or part.digest()
            self._compare(key, found[key])
            if self._digests.get(key, found[key]) != found[key]:
                raise UserError(
                    f"{part.key}={part.name}: is not the encoder that the embeddings "
                    f"in {self._store.root} are of; set text.cache to another folder"
                )
            for note in (part.fingerprint(), part.label):
                if note is not None:
                    self._store.note_digest(note, found[key])
        self._digests = found
        return found

    def about(self, kind: str, full: bool) -> dict[str, Any]:
        """All that embeddings depend on, and the names that the encoders have."""
        return {
            "encoder": kind,
            "padding": "attended to" if full else "masked",
            "parts": {
                key: {
                    "name": part.name,
                    "digest": self.digests()[key],
                    "max_tokens": part.max_tokens,
                    "dtype": part.dtype,
                }
                for key, part in self._parts.items()
            },
        }

    def _known(self, key: str) -> str | None:
        """The digest, where it was computed before and no file of the encoder has changed since."""
        part = self._parts[key]
        fingerprint = part.fingerprint()
        digest = None if fingerprint is None else self._store.digest(fingerprint)
        if digest is not None:
            self._store.note_digest(part.label, digest)
        return digest

    def _compare(self, key: str, digest: str | None) -> None:
        part, expected = self._parts[key], self._expected.get(key, digest)
        if digest is not None and expected != digest:
            raise UserError(
                f"{part.key}={part.name}: is not the encoder that {self._origin} was trained "
                f"with (its digest is {digest}, that one's {expected}); set {part.key} to the "
                f"folder of that one"
            )


def folder_name(about: Mapping[str, Any]) -> str:
    """The name of the folder for these embeddings, wherever the encoders lie."""
    parts = {key: part | {"name": None} for key, part in about["parts"].items()}
    plain = json.dumps({**about, "parts": parts}, sort_keys=True)
    return f"{about['encoder']}-{hashlib.sha256(plain.encode()).hexdigest()[:16]}"
