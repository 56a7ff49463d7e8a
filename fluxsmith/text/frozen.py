"""Frozen text encoders behind a cache: what training and sampling call, which runs the encoders
only for prompts that it has not met.

Not an nn.Module, on purpose: a model that holds one neither trains it nor saves it, nor switches
its dropout on.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from fluxsmith.device import pick_device, to_device
from fluxsmith.errors import UserError
from fluxsmith.files import cache_folder
from fluxsmith.text.cache import EmbeddingCache
from fluxsmith.text.encoder import TextEmbedding, check_unicode, distinct
from fluxsmith.text.identity import DigestBook, describe, find_stored, folder_name
from fluxsmith.text.padding import Encoded, assemble
from fluxsmith.text.pretrained import Pretrained

GROUP = 32  # prompts that go through the encoders at once

Progress = Callable[[int], None]  # called with the number of prompts done so far

log = logging.getLogger(__name__)


class Encoders(Protocol):
    """One or more pretrained encoders that together turn a prompt into tokens and a vector."""

    kind: str  # its name in ENCODERS
    parts: Mapping[str, Pretrained]  # by the name of their key in the text section
    reader: Pretrained  # the one of them whose tokens the network gets

    def widths(self) -> tuple[int, int]:
        """Of the tokens and of the pooled vector, found without loading weights."""
        ...

    def encode(self, prompts: Sequence[str], full: bool) -> list[Encoded]:
        """Each prompt's embedding; `full` attends to padding up to max_tokens and keeps it."""
        ...


class FrozenText:
    """A `TextEncoder` over pretrained encoders, which load when a prompt needs them.

    `padding` is trim, mask or full; `cache` a folder for embeddings, `auto` for the usual one, or
    `memory` for none on disk; `device` is where the network wants the embeddings.
    """

    def __init__(self, encoders: Encoders, padding: str, cache: str, device: torch.device) -> None:
        self.encoders = encoders
        self.padding = padding
        self.full = padding == "full"
        self.max_tokens = encoders.reader.source.max_tokens
        self.device = device
        self.encoded = 0  # prompts that went through the encoders
        self._root = _root(cache)
        self._book = DigestBook(self._root)
        self._digests: dict[str, str] = {}  # that the cache is looked up by
        self._expected: Mapping[str, str] = {}  # by a checkpoint
        self._origin = ""
        self._said: set[str] = set()  # prompts whose cut was reported

    @property
    def token_width(self) -> int:
        return self._widths[0]

    @property
    def pooled_width(self) -> int:
        return self._widths[1]

    def check(self, prompts: Sequence[str]) -> None:
        """Any text will do: what is too long is cut, as the encoders were trained, and said.
        Encoders that a prompt needs are loaded, so that what is wrong with them shows now."""
        check_unicode(prompts)
        if self.missing(prompts):
            self._ensure_loaded()

    def __call__(self, prompts: Sequence[str]) -> TextEmbedding:
        return self.embed(self.read(prompts))

    def embed(self, read: TextEmbedding) -> TextEmbedding:
        return read

    def read(self, prompts: Sequence[str], room: int = 0) -> TextEmbedding:
        """The prompts' embeddings on the network's device, padded as `padding` says."""
        if not prompts:
            raise ValueError("there is no prompt to encode")
        check_unicode(prompts)
        strings, rows = distinct(prompts)
        found = self._lookup(strings)
        self._say_cuts(strings, found)
        with torch.inference_mode(False):  # training must be able to use what sampling looked up
            batch = assemble(found, self.padding, self.max_tokens)
            return batch.to(self.device)[to_device(rows, self.device)]

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Uncut, by the tokenizer alone."""
        return self.encoders.reader.cut_ids(prompts)[1]

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """The distinct prompts that the cache doesn't hold."""
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.cache]

    def prepare(
        self, prompts: Sequence[str], progress: Progress | None = None, quiet: bool = False
    ) -> None:
        """Encodes what the cache doesn't hold, puts it on disk, and frees the encoders.

        With `quiet`, prompts that are too long are the caller's to report, by `counts`.
        """
        check_unicode(prompts)
        missing = self.missing(prompts)
        if missing:
            self.cache.make()  # better a complaint now than when all is done
        try:
            self._encode(missing, progress, strict=True)
        finally:
            self._put_away(strict=True)
        if quiet:
            self._said.update(prompts)
        self.release()

    def counts(self, prompts: Sequence[str]) -> list[tuple[int, int]]:
        """For each prompt its number of tokens, and the number it would have uncut."""
        known = {prompt: self.cache.counts(prompt) for prompt in prompts}
        new = self._encode([prompt for prompt, counts in known.items() if counts is None])
        found = {prompt: (one.real, one.needed) for prompt, one in new.items()}
        return [known[prompt] or found[prompt] for prompt in prompts]

    def flush(self) -> None:
        """Puts on disk what was encoded since; where that can't be done, it is said."""
        self._put_away(strict=False)

    def release(self) -> None:
        """Frees the encoders' weights; a prompt that isn't in the cache loads them again."""
        for part in self.encoders.parts.values():
            part.release()

    @property
    def is_loaded(self) -> bool:
        return any(part.is_loaded for part in self.encoders.parts.values())

    def identity(self) -> dict[str, dict[str, str]]:
        """The name and digest of each encoder, as a checkpoint keeps them."""
        digests = self.digests()
        parts = self.encoders.parts.items()
        return {key: {"name": part.source.name, "digest": digests[key]} for key, part in parts}

    def expect(self, identity: Mapping[str, Mapping[str, str]], origin: str) -> None:
        """The encoders that the checkpoint `origin` was trained with. Others are a UserError, at
        once where they are known by now, and otherwise as soon as they are loaded."""
        self._expected = {key: entry["digest"] for key, entry in identity.items()}
        self._origin = origin
        for key, part in self.encoders.parts.items():
            self._compare(key, self._book.known(part))

    def digests(self) -> Mapping[str, str]:
        """The digest of each encoder: known from an earlier run, or from the checkpoint that names
        it, or from the cache where the encoder itself isn't here; otherwise they are loaded."""
        if not self._digests:
            known = {key: self._book.known(part) for key, part in self.encoders.parts.items()}
            found = {**self._expected, **{key: d for key, d in known.items() if d is not None}}
            if len(found) < len(known):
                stored = self._stored_digests()
                agrees = all(stored.get(key) == digest for key, digest in found.items())
                found = stored if stored and agrees else self._load()
            self._digests = found
        return self._digests

    @cached_property
    def cache(self) -> EmbeddingCache:
        """Opened when it is first asked for, which is when the encoders' digests are needed."""
        if self._root is None:
            return EmbeddingCache(None, {})
        about = describe(self.encoders.kind, self.full, self.encoders.parts, self.digests())
        folder = self._root / folder_name(about)
        return EmbeddingCache(folder, about | {"widths": list(self._widths)})

    @cached_property
    def _widths(self) -> tuple[int, int]:
        if self._stored is not None:
            width, pooled = self._stored["widths"]
            return int(width), int(pooled)
        return self.encoders.widths()

    @cached_property
    def _stored(self) -> Mapping[str, Any] | None:
        """What the cache knows of encoders of these names, where some aren't on this machine."""
        parts = self.encoders.parts
        if all(part.fingerprint() is not None for part in parts.values()):
            return None
        return find_stored(self._root, self.encoders.kind, self.full, parts)

    def _stored_digests(self) -> dict[str, str]:
        parts = self._stored["parts"] if self._stored is not None else {}
        return {key: part["digest"] for key, part in parts.items()}

    def _ensure_loaded(self) -> None:
        if not self.is_loaded:
            self._digests = self._load()

    def _load(self) -> dict[str, str]:
        """Loads every encoder and sees that it is the one expected and looked up by."""
        found = {}
        for key, part in self.encoders.parts.items():
            found[key] = self._book.of(part)
            self._compare(key, found[key])
            if self._digests.get(key, found[key]) != found[key]:
                raise UserError(
                    f"{part.source.key}={part.source.name}: is not the encoder that the embeddings "
                    f"in {self._root} are of; set text.cache to another folder"
                )
        return found

    def _compare(self, key: str, digest: str | None) -> None:
        expected = self._expected.get(key)
        if digest is not None and expected is not None and expected != digest:
            source = self.encoders.parts[key].source
            raise UserError(
                f"{source.key}={source.name}: is not the encoder that {self._origin} was trained "
                f"with (its digest is {digest}, that one's {expected}); set {source.key} to the "
                f"folder of that one"
            )

    def _lookup(self, strings: Sequence[str]) -> list[Encoded]:
        found = {prompt: self.cache.get(prompt) for prompt in strings}
        missing = [prompt for prompt, encoded in found.items() if encoded is None]
        found |= self._encode(missing)
        return [encoded for encoded in found.values() if encoded is not None]

    def _encode(
        self, prompts: Sequence[str], progress: Progress | None = None, strict: bool = False
    ) -> dict[str, Encoded]:
        """Puts prompts into the cache, those of like length together."""
        if not prompts:
            return {}
        self._ensure_loaded()
        found = {}
        ordered = sorted(prompts, key=lambda prompt: (len(prompt), prompt))
        for start in range(0, len(ordered), GROUP):
            group = ordered[start : start + GROUP]
            for prompt, encoded in zip(group, self._encode_group(group), strict=True):
                found[prompt] = encoded
                self.cache.put(prompt, encoded)
            self.encoded += len(group)
            if self.cache.is_due:
                self._put_away(strict)
            if progress is not None:
                progress(start + len(group))
        return found

    def _put_away(self, strict: bool) -> None:
        """Writes what was encoded to disk. A disk that is full is no reason to lose a run, but one
        to complain before it begins."""
        try:
            self.cache.flush()
        except UserError as error:
            if strict:
                raise
            log.warning("%s; until then, embeddings stay in memory", error)
            self.cache.keep_in_memory()

    @torch.no_grad()
    def _encode_group(self, prompts: Sequence[str]) -> list[Encoded]:
        """In the encoders' own precision, whatever is around the call."""
        with (
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            encoded = self.encoders.encode(prompts, self.full)
        for prompt, one in zip(prompts, encoded, strict=True):
            if not (one.tokens.isfinite().all() and one.pooled.isfinite().all()):
                raise UserError(
                    f"the text encoder overflows at {prompt[:40]!r}; use bfloat16 or float32 in "
                    f"place of float16"
                )
        return encoded

    def _say_cuts(self, prompts: Sequence[str], encoded: Sequence[Encoded]) -> None:
        """A warning, once, for each prompt that is longer than the encoder takes."""
        for prompt, one in zip(prompts, encoded, strict=True):
            if one.needed > one.real and prompt not in self._said:
                self._said.add(prompt)
                log.warning(
                    "the prompt %r... makes %d tokens, of which %d are used",
                    prompt[:40], one.needed, one.real,
                )  # fmt: skip


def device_of(key: str, name: str, network: torch.device) -> torch.device:
    """The device an encoder runs on: the network's for `network`, else the one named."""
    if name == "network":
        return network
    try:
        return pick_device(name)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def _root(cache: str) -> Path | None:
    if cache == "memory":
        return None
    return cache_folder() / "text" if cache == "auto" else Path(cache).expanduser()
