"""Which encoders a run uses, told by digests of what they compute with, and found without loading
them where an earlier run has left its note."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxsmith.errors import UserError
from fluxsmith.files import make_folder, write_text
from fluxsmith.nesting import parse_json
from fluxsmith.text.pretrained import Pretrained

ABOUT = "encoder.json"  # in each folder of embeddings: whose they are
DIGESTS = "digests.json"  # beside those folders: digests by key, dtype and fingerprint of files


class DigestBook:
    """The digests of encoders, kept in `root` as long as their files stay as they are."""

    def __init__(self, root: Path | None) -> None:
        self._file = root / DIGESTS if root else None
        self._known: dict[str, str] = {}

    def known(self, part: Pretrained) -> str | None:
        """The digest, where it was computed before and no file has changed since."""
        key = _key(part)
        if key is None:
            return None
        return self._known.get(key) or _read(self._file).get(key)

    def of(self, part: Pretrained) -> str:
        """The digest, for which the encoder is loaded where it isn't known."""
        digest = self.known(part)
        if digest is None:
            digest = part.digest()
            self._note(part, digest)
        return digest

    def _note(self, part: Pretrained, digest: str) -> None:
        key = _key(part)
        if key is None:
            return
        self._known[key] = digest
        if self._file is not None:
            with contextlib.suppress(UserError):  # read-only, perhaps: then it is computed again
                make_folder(self._file.parent, "text.cache")
                write_text(self._file, json.dumps(_read(self._file) | {key: digest}, indent=2))


def describe(
    kind: str, full: bool, parts: Mapping[str, Pretrained], digests: Mapping[str, str]
) -> dict[str, Any]:
    """All that embeddings depend on, and the names that the encoders had."""
    return {
        "encoder": kind,
        "padding": "attended to" if full else "masked",
        "parts": {
            key: {
                "name": part.source.name,
                "digest": digests[key],
                "max_tokens": part.source.max_tokens,
                "dtype": part.source.dtype,
            }
            for key, part in parts.items()
        },
    }


def folder_name(about: Mapping[str, Any]) -> str:
    """The folder for these embeddings, wherever the encoders lie."""
    parts = {key: part | {"name": None} for key, part in about["parts"].items()}
    plain = json.dumps({**about, "parts": parts}, sort_keys=True)
    return f"{about['encoder']}-{hashlib.sha256(plain.encode()).hexdigest()[:16]}"


def find_stored(
    root: Path | None, kind: str, full: bool, parts: Mapping[str, Pretrained]
) -> dict[str, Any] | None:
    """What a folder below `root` says of itself that holds embeddings by encoders of these names
    and settings; None where there is none, or several that differ."""
    found = []
    for file in sorted(root.glob(f"*/{ABOUT}")) if root else []:
        about = _read(file)
        with contextlib.suppress(KeyError, TypeError):
            digests = {key: about["parts"][key]["digest"] for key in parts}
            if about == describe(kind, full, parts, digests) | {"widths": about["widths"]}:
                found.append(about)
    return found[0] if len(found) == 1 else None


def _key(part: Pretrained) -> str | None:
    """Of a part: FLUX.1's repositories hold two encoders in one folder."""
    fingerprint, source = part.fingerprint(), part.source
    return None if fingerprint is None else f"{source.key} {source.dtype} {fingerprint}"


def _read(file: Path | None) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or something else."""
    if file is None:
        return {}
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
