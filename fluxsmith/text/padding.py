"""Prompts of uneven length in one batch: what a frozen encoder keeps of each, and how they are
brought to one length.

`trim` and `mask` hold the same tokens and give the same velocity; `full` is how FLUX.1 was trained,
which attends to the padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxsmith.text.encoder import TextEmbedding


@dataclass(frozen=True)
class Encoded:
    """One prompt as an encoder gave it, on the CPU, to be kept."""

    tokens: Tensor  # (l, d): the prompt's own first, then padding where that was encoded too
    pooled: Tensor  # (p,)
    real: int  # tokens that are the prompt's own
    needed: int  # tokens it would have, had it not been cut at the encoder's limit

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.pooled.nbytes


def assemble(prompts: Sequence[Encoded], padding: str, max_tokens: int) -> TextEmbedding:
    """The prompts as one batch, padded as `padding` says: trim, mask or full."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    length = longest if padding == "trim" else max_tokens
    tokens = torch.stack([_padded(prompt.tokens, length) for prompt in prompts])  # (n, l, d)
    pooled = torch.stack([prompt.pooled for prompt in prompts])  # (n, p)
    real = torch.tensor([prompt.real for prompt in prompts])
    masked = padding != "full" and int(real.min()) < length
    mask = torch.arange(length) < real[:, None] if masked else None  # (n, l)
    return TextEmbedding(tokens, pooled, mask)


def batch_length(real: Sequence[int], padding: str, max_tokens: int) -> int:
    """The tokens of each row of a batch of prompts with so many tokens of their own."""
    return max(real) if padding == "trim" else max_tokens


def _padded(tokens: Tensor, length: int) -> Tensor:
    """(l, d) -> (length, d), zeros at the end."""
    return F.pad(tokens, (0, 0, 0, length - len(tokens)))
