"""What a text encoder gives, and what it has to offer to be used as one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor

from fluxsmith.device import to_device
from fluxsmith.errors import UserError

Width = Annotated[int, Interval(ge=1, le=2**17)]  # as a setting of an encoder
TooLong = Annotated[
    Literal["cut", "count"],
    "A caption of more tokens than the encoder takes is cut, or counted under data.max_bad.",
]

NULL_PROMPT = ""  # what caption dropout puts in a caption's place, and guidance steers away from


@dataclass(frozen=True)
class TextEmbedding:
    """The text of a batch: `tokens` (b, t, d), `pooled` (b, p), and `mask` (b, t), true at real
    tokens. A mask of None says, without a look at the device, that every token is real."""

    tokens: Tensor
    pooled: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        return self.pooled.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> "TextEmbedding":
        """The embeddings of some rows of the batch, in that order, padding and all."""
        return self._each(lambda part: part[rows])

    def to(self, device: torch.device) -> "TextEmbedding":
        """On the device; itself where it is there already."""
        if self.pooled.device == device:
            return self
        return self._each(lambda part: to_device(part, device))

    def expand(self, batch: int) -> "TextEmbedding":
        """A single prompt's embedding repeated, without copying, for a batch."""
        return self._each(lambda part: part.expand(batch, *part.shape[1:]))

    def followed_by(self, other: "TextEmbedding") -> "TextEmbedding":
        """The rows of both in one batch, (b + b', max(t, t'), d): first its own, then the other's.
        Where one has fewer tokens it is padded, and masked there."""
        length = max(self.tokens.shape[1], other.tokens.shape[1])
        parts = [part.padded(length) for part in (self, other)]
        mask = None
        if any(part.mask is not None for part in parts):
            mask = torch.cat([part.real for part in parts])
        tokens = torch.cat([part.tokens for part in parts])
        return TextEmbedding(tokens, torch.cat((self.pooled, other.pooled)), mask)

    def padded(self, length: int) -> "TextEmbedding":
        """(b, length, d): zeros, which are masked, after each row's t tokens. A ValueError where
        there are more tokens than that."""
        missing = length - self.tokens.shape[1]
        if missing < 0:
            raise ValueError(f"{self.tokens.shape[1]} tokens can't be padded to {length}")
        if missing == 0:
            return self
        tokens = F.pad(self.tokens, (0, 0, 0, missing))
        return TextEmbedding(tokens, self.pooled, F.pad(self.real, (0, missing)))

    @property
    def real(self) -> Tensor:
        """The mask (b, t), also where every token is real."""
        if self.mask is not None:
            return self.mask
        return self.tokens.new_ones(self.tokens.shape[:2], dtype=torch.bool)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "TextEmbedding":
        mask = None if self.mask is None else change(self.mask)
        return TextEmbedding(change(self.tokens), change(self.pooled), mask)


TextInput = Any  # a dataclass of tensors


class TextEncoder(Protocol):
    """`token_width` and `pooled_width` become the network's context_in_dim and vec_in_dim."""

    token_width: int
    pooled_width: int
    max_tokens: int  # of a prompt

    def check(self, prompts: Sequence[str]) -> None:
        """Raises a UserError that names the first prompt which can't be encoded, and why."""
        ...

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """The tokens that each prompt makes, whether or not the encoder takes so many."""
        ...

    def __call__(self, prompts: Sequence[str]) -> TextEmbedding:
        """`embed` of what `read` gives."""
        ...

    def read(self, prompts: Sequence[str], room: int = 0) -> TextInput:
        """The host's part of encoding: what `embed` computes from, on the device.

        Where its shapes depend on how many prompts differ, they are those of `room` different ones
        or more, so that other prompts of the same lengths give the same shapes.
        """
        ...

    def embed(self, read: TextInput) -> TextEmbedding:
        """The device's part: differentiable where the encoder is learned."""
        ...


def check_unicode(prompts: Sequence[str]) -> None:
    """Raises a UserError that names the first prompt which is not valid text."""
    for number, prompt in enumerate(prompts, start=1):
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"prompt {number} is not valid text: {error.reason} at character "
                f"{error.start}; give it in UTF-8"
            ) from None


def distinct(prompts: Sequence[str]) -> tuple[list[str], Tensor]:
    """The different prompts, in order of appearance, and for each prompt its index among them."""
    index: dict[str, int] = {}
    rows = [index.setdefault(prompt, len(index)) for prompt in prompts]
    return list(index), torch.tensor(rows)
