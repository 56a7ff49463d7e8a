"""Prompts of uneven length in one batch: what a frozen encoder gives for each, and how they are
brought to one length.

`trim` and `mask` hold the same tokens and give the same velocity; `full` is how FLUX.1 was trained,
which attends to the padding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxsmith.text.encoder import TextEmbedding


class Encoded(NamedTuple):
    """One prompt as an encoder gave it, on the CPU."""

    tokens: Tensor  # (l, d): the prompt's own first, then padding where that was encoded too
    pooled: Tensor  # (p,)
    real: int  # tokens that are the prompt's own
    needed: int  # tokens that it would have, had it not been cut at the encoder's limit


def assemble(prompts: Sequence[Encoded], padding: str, max_tokens: int) -> TextEmbedding:
    """The prompts as one batch, padded as `padding` says: trim, mask or full."""
    length = batch_length([len(prompt.tokens) for prompt in prompts], padding, max_tokens)
    tokens = [F.pad(one.tokens, (0, 0, 0, length - len(one.tokens))) for one in prompts]
    real = torch.tensor([prompt.real for prompt in prompts])
    masked = padding != "full" and int(real.min()) < length
    return TextEmbedding(
        torch.stack(tokens),  # (n, l, d)
        torch.stack([prompt.pooled for prompt in prompts]),  # (n, p)
        torch.arange(length) < real[:, None] if masked else None,  # (n, l)
    )


def batch_length(tokens: Sequence[int], padding: str, max_tokens: int) -> int:
    """The length of the rows of a batch, whose prompts have so many tokens."""
    return max(tokens) if padding == "trim" else max_tokens
