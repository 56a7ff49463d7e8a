"""Frozen text encoders with a cache: the encoders run only for prompts that are not in the cache.

Not an nn.Module, on purpose: so a model that has one as an attribute does not train it, save it, or
switch its dropout on.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal

import torch

from fluxsmith.device import to_device
from fluxsmith.errors import UserError
from fluxsmith.text.cache import Cache, Store
from fluxsmith.text.encoder import TextEmbedding, check_unicode, distinct
from fluxsmith.text.identity import Identity, folder_name
from fluxsmith.text.padding import Encoded, assemble
from fluxsmith.text.pretrained import Pretrained
from fluxsmith.text.single_file import Reader, SingleFile

GROUP = 32  # prompts that go through the encoders at once

# Settings that frozen encoders share.
Padding = Annotated[
    Literal["trim", "mask", "full"],
    "trim to a batch's longest prompt and mask; mask to the end; full: attend to it as FLUX.1.",
]
CacheChoice = Annotated[
    str, "Folder for embeddings on disk; auto: the usual cache folder; memory: none on disk."
]

Progress = Callable[[int], None]  # called with the number of prompts done so far

log = logging.getLogger(__name__)


class FrozenText(ABC):
    """A `TextEncoder` over pretrained encoders, which load when a prompt needs them.

    `parts` are the encoders by the name of their key in the text section, and `reader` the one of
    them whose tokens the network gets. `padding` is trim, mask or full; `device` is where the
    network wants the embeddings, and `store` keeps them.
    """

    kind: str  # its name in ENCODERS

    def __init__(
        self,
        parts: Mapping[str, Pretrained],
        reader: Pretrained,
        padding: str,
        device: torch.device,
        store: Store,
    ) -> None:
        self.parts, self.reader = parts, reader
        self.padding = padding
        self.full = padding == "full"  # attended to up to max_tokens, and kept
        self.max_tokens = reader.max_tokens
        self.device = device
        self._store = store
        self.identity = Identity(parts, store)
        self._reported: set[str] = set()  # prompts that were said to be cut

    def open_files_with(self, read: Reader) -> None:
        """Says what reads encoders that are single files."""
        for part in self.parts.values():
            if isinstance(part, SingleFile):
                part.read = read

    @abstractmethod
    def widths(self) -> tuple[int, int]:
        """Of the tokens and of the pooled vector, found without loading weights."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> list[Encoded]:
        """Each prompt's embedding, by the encoders themselves."""

    @property
    def token_width(self) -> int:
        return self._widths[0]

    @property
    def pooled_width(self) -> int:
        return self._widths[1]

    def check(self, prompts: Sequence[str]) -> None:
        """Any text is taken: what is too long is cut, as the encoders were trained, with a warning.
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
        check_unicode(prompts)
        strings, rows = distinct(prompts)
        found = self._look_up(strings)
        self._report_cuts(strings, found)
        with torch.inference_mode(False):  # training must be able to use what sampling looked up
            batch = assemble(found, self.padding, self.max_tokens)
            return batch.to(self.device)[to_device(rows, self.device)]

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Uncut, by the tokenizer alone."""
        return list(map(len, self.reader.ids(prompts)))

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """The distinct prompts that the cache doesn't hold."""
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.cache]

    def prepare(self, prompts: Sequence[str], progress: Progress | None = None) -> None:
        """Encodes what the cache doesn't hold, writes it to disk, and frees the encoders. There are
        no warnings of prompts that are cut: the caller asks `counts`."""
        check_unicode(prompts)
        missing = self.missing(prompts)
        if missing:
            self.cache.make()  # fails now, not when all is encoded
        try:
            self._encode(missing, progress)
        finally:
            self.cache.flush(strict=True)
        self._reported.update(prompts)
        self.release()

    def counts(self, prompt: str) -> tuple[int, int]:
        """The tokens of a prompt that was ever in the cache, and those that it would have uncut."""
        real, needed = self.cache.note(prompt)
        return real, needed

    def release(self) -> None:
        """Frees the encoders' weights; a prompt that isn't in the cache loads them again."""
        for part in self.parts.values():
            part.release()

    @property
    def is_loaded(self) -> bool:
        return any(part.is_loaded for part in self.parts.values())

    @cached_property
    def cache(self) -> Cache:
        """Opened when it is first asked for: that needs the encoders' digests."""
        if self._store.root is None:
            return self._store.open("memory", {})
        about = self.identity.about(self.kind, self.full)
        return self._store.open(folder_name(about), about)

    @cached_property
    def _widths(self) -> tuple[int, int]:
        here = all(part.fingerprint() for part in self.parts.values())
        stored = self.cache.any_entry() if not here and self.identity.noted() else None
        return (stored["tokens"].shape[-1], stored["pooled"].shape[-1]) if stored else self.widths()

    def _ensure_loaded(self) -> None:
        if not self.is_loaded:
            self.identity.confirm()

    def _look_up(self, strings: Sequence[str]) -> list[Encoded]:
        held = {prompt: self.cache.get(prompt) for prompt in strings}
        new = self._encode([prompt for prompt, entry in held.items() if entry is None])
        return [
            new[prompt] if entry is None
            else Encoded(entry["tokens"], entry["pooled"], *self.counts(prompt))
            for prompt, entry in held.items()
        ]  # fmt: skip

    def _encode(
        self, prompts: Sequence[str], progress: Progress | None = None
    ) -> dict[str, Encoded]:
        """Puts prompts into the cache, those of like length together."""
        if not prompts:
            return {}
        self._ensure_loaded()
        found: dict[str, Encoded] = {}
        ordered = sorted(prompts, key=lambda prompt: (len(prompt), prompt))
        for start in range(0, len(ordered), GROUP):
            group = ordered[start : start + GROUP]
            found |= zip(group, self._encode_group(group), strict=True)
            for prompt in group:
                one = found[prompt]
                entry = {"tokens": one.tokens, "pooled": one.pooled}
                self.cache.put(prompt, entry, [one.real, one.needed])
            if progress is not None:
                progress(start + len(group))
        return found

    @torch.no_grad()
    def _encode_group(self, prompts: Sequence[str]) -> list[Encoded]:
        """In the encoders' own precision, also inside autocast."""
        with (
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            encoded = self.encode(prompts)
        for prompt, one in zip(prompts, encoded, strict=True):
            if not (one.tokens.isfinite().all() and one.pooled.isfinite().all()):
                raise UserError(
                    f"the text encoder overflows at {prompt[:40]!r}; use bfloat16 or float32 in "
                    f"place of float16"
                )
        return encoded

    def _report_cuts(self, prompts: Sequence[str], encoded: Sequence[Encoded]) -> None:
        """A warning, once, for each prompt that is longer than the encoder takes."""
        for prompt, one in zip(prompts, encoded, strict=True):
            if one.needed > one.real and prompt not in self._reported:
                self._reported.add(prompt)
                log.warning(
                    "the prompt %r... makes %d tokens, of which %d are used",
                    prompt[:40], one.needed, one.real,
                )  # fmt: skip
