"""A text encoder learned with the model: any UTF-8 string, no vocabulary file, no download.

A prompt is cut into pieces, a word each (a long word makes several), and every piece becomes one
token. So "three" costs one token where characters would cost five, and captions of one word need
no padding at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval, MultipleOf
from torch import Tensor, nn

from fluxsmith.device import to_device
from fluxsmith.errors import UserError
from fluxsmith.text.encoder import TextEmbedding, TooLong, Width, check_unicode, distinct

PIECE_BYTES = 16  # at most this many bytes of a word go into one token
CONTINUED = b"\xff"  # a byte that UTF-8 never uses
HEAD = 64  # width of an attention head
NO_BYTE = 256  # fills a piece up, and is masked out


@dataclass(frozen=True)
class Settings:
    width: Annotated[Width, "Width of the tokens and of the pooled vector that it gives."] = 768
    hidden_size: Annotated[
        int,
        Interval(ge=HEAD, le=2**17),
        MultipleOf(HEAD),
        "Width inside the encoder, a multiple of 64.",
    ] = 128
    depth: Annotated[int, Interval(ge=0, le=256), "Transformer layers inside the encoder."] = 1
    max_tokens: Annotated[Width, "The longest prompt; a word of up to 16 bytes is a token."] = 64
    too_long: TooLong = "count"


def build(settings: Settings, device: torch.device, store: object) -> "ByteEncoder":
    """A new encoder on the CPU, whose weights are the same whatever `device` it moves to."""
    width, hidden_size = settings.width, settings.hidden_size
    cut = settings.too_long == "cut"
    return ByteEncoder(width, hidden_size, settings.depth, settings.max_tokens, cut)


@dataclass(frozen=True)
class Pieces:
    """Prompts cut up: byte codes (n, t, PIECE_BYTES) of different ones, the mask (n, t) of real
    pieces where some are not, and for each prompt its row (b,)."""

    codes: Tensor
    mask: Tensor | None
    rows: Tensor


class ByteEncoder(nn.Module):
    """Bytes -> pieces -> a small transformer over the pieces -> tokens and a pooled vector.

    A piece starts as the sum of an embedding for each (place in the piece, byte), which is a
    linear map of its one-hot bytes, so no two pieces start alike.
    """

    def __init__(
        self, width: int, hidden_size: int, depth: int, max_tokens: int, cut: bool = False
    ) -> None:
        super().__init__()
        self.cut = cut  # longer prompts, where they would be an error
        self.token_width = self.pooled_width = width
        self.max_tokens = max_tokens
        self.bytes_in = nn.Embedding(PIECE_BYTES * (NO_BYTE + 1), hidden_size)
        self.position = nn.Embedding(max_tokens, hidden_size)
        self.piece_mlp = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size),
            nn.GELU(),
            nn.Linear(4 * hidden_size, hidden_size),
        )
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden_size,
                nhead=hidden_size // HEAD,
                dim_feedforward=4 * hidden_size,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.tokens_out = nn.Linear(hidden_size, width)
        self.pooled_out = nn.Linear(hidden_size, width)
        # Unit variance for a typical word of five letters, positions a little below.
        nn.init.normal_(self.bytes_in.weight, std=0.4)
        nn.init.normal_(self.position.weight, std=0.2)
        offsets = torch.arange(PIECE_BYTES) * (NO_BYTE + 1)
        self.register_buffer("offsets", offsets, persistent=False)
        self.offsets: Tensor

    def check(self, prompts: Sequence[str]) -> None:
        check_unicode(prompts)
        if self.cut:
            return
        for number, prompt in enumerate(prompts, start=1):
            if (count := len(pieces(prompt))) > self.max_tokens:
                shown = prompt if len(prompt) <= 40 else f"{prompt[:40]}..."
                raise UserError(
                    f"prompt {number} ({shown!r}) makes {count} tokens; this encoder "
                    f"takes {self.max_tokens} tokens (text.max_tokens): shorten the prompt, or set "
                    f"text.too_long=cut"
                )

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        return [len(pieces(prompt)) for prompt in prompts]

    def forward(self, prompts: Sequence[str]) -> TextEmbedding:
        """Encodes each distinct prompt once; as many tokens as the longest one needs."""
        return self.embed(self.read(prompts))

    def read(self, prompts: Sequence[str], room: int = 0) -> Pieces:
        """Each distinct prompt once, and the last one again up to `room` rows."""
        self.check(prompts)
        strings, rows = distinct(prompts)
        cut = [pieces(string)[: self.max_tokens] for string in strings]
        cut += cut[-1:] * (room - len(cut))
        lengths = [len(words) for words in cut]
        blank = [_filled_up(b"")]
        codes = torch.tensor(
            [[*map(_filled_up, words), *blank * (max(lengths) - len(words))] for words in cut]
        )
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        device = self.offsets.device
        padded = min(lengths) < max(lengths)
        return Pieces(
            codes=to_device(codes, device),
            mask=to_device(mask, device) if padded else None,
            rows=to_device(rows, device),
        )

    def embed(self, read: Pieces) -> TextEmbedding:
        codes, mask = read.codes, read.mask
        x = self.bytes_in(codes + self.offsets)  # (n, t, PIECE_BYTES, d)
        x = (x * (codes != NO_BYTE)[..., None]).sum(dim=2)  # (n, t, d)
        x = x + self.piece_mlp(x) + self.position.weight[: x.shape[1]]
        ignore = None if mask is None else ~mask
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=ignore)
        x = self.norm(x)
        # Over the root of their number: in a mean, a word of a long prompt would count for little.
        if mask is None:
            pooled = x.sum(dim=1) / math.sqrt(x.shape[1])  # (n, d)
        else:
            real = mask[..., None].to(x.dtype)
            pooled = (x * real).sum(dim=1) / real.sum(dim=1).sqrt()
        embedding = TextEmbedding(self.tokens_out(x), self.pooled_out(F.silu(pooled)), mask)
        return embedding[read.rows]


@lru_cache(maxsize=65536)
def _filled_up(piece: bytes) -> tuple[int, ...]:
    return (*piece, *[NO_BYTE] * (PIECE_BYTES - len(piece)))


@lru_cache(maxsize=65536)
def pieces(prompt: str) -> tuple[bytes, ...]:
    """The words of a prompt in UTF-8, in pieces of at most PIECE_BYTES; one empty piece for "".

    A piece that continues a word begins with CONTINUED, so that it differs from a whole word.
    """
    cut = []
    for word in map(str.encode, prompt.split()):
        cut.append(word[:PIECE_BYTES])
        rest, room = word[PIECE_BYTES:], PIECE_BYTES - len(CONTINUED)
        cut += [CONTINUED + rest[i : i + room] for i in range(0, len(rest), room)]
    return tuple(cut) or (b"",)
