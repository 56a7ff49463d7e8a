"""FLUX.1's own text encoders: T5's tokens, and CLIP's pooled vector.

With `full` padding this is what FLUX.1 was trained on and diffusers' FluxPipeline computes: T5
reads its padding unmasked. CLIP is causal, so what pads it can't reach its pooled vector.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fluxsmith.text.frozen import FrozenText, device_of
from fluxsmith.text.padding import Encoded
from fluxsmith.text.pretrained import Pretrained, Source


class Clip(Pretrained):
    families = ("clip", "clip_text_model")

    def model_class(self, transformers: Any) -> Any:
        return transformers.CLIPTextModel


class T5(Pretrained):
    families = ("t5", "mt5")

    def model_class(self, transformers: Any) -> Any:
        return transformers.T5EncoderModel


class ClipT5:
    """Both encoders, as `FrozenText` runs them."""

    kind = "clip_t5"

    def __init__(self, clip: Clip, t5: T5) -> None:
        self.clip, self.t5 = clip, t5
        self.reader: Pretrained = t5
        self.parts: Mapping[str, Pretrained] = {"clip": clip, "t5": t5}

    def widths(self) -> tuple[int, int]:
        return self.t5.width, self.clip.width

    def encode(self, prompts: Sequence[str], full: bool) -> list[Encoded]:
        ids, needed = self.t5.cut_ids(prompts)
        real = [len(row) for row in ids]
        rows, mask = self.t5.padded(ids, self.t5.source.max_tokens if full else max(real))
        seen = None if full else mask
        tokens = self.t5.model(rows, attention_mask=seen).last_hidden_state.cpu()  # (n, l, d)

        ids, _ = self.clip.cut_ids(prompts)
        rows, _ = self.clip.padded(ids, max(map(len, ids)))
        pooled = self.clip.model(rows).pooler_output.cpu()  # (n, p)
        return [
            Encoded(row if full else row[:n], vector, n, uncut)
            for row, vector, n, uncut in zip(tokens, pooled, real, needed, strict=True)
        ]


def build(
    *,
    clip: str,
    clip_tokens: int,
    clip_dtype: str,
    clip_device: str,
    t5: str,
    t5_tokens: int,
    t5_dtype: str,
    t5_device: str,
    padding: str,
    cache: str,
    device: torch.device,
) -> FrozenText:
    """The encoders of these names, behind the cache; nothing is loaded yet."""
    clip_source = Source(
        "text.clip", clip, clip_tokens, "text.clip_tokens", clip_dtype,
        device_of("text.clip_device", clip_device, device), ("text_encoder", "tokenizer"),
    )  # fmt: skip
    t5_source = Source(
        "text.t5", t5, t5_tokens, "text.t5_tokens", t5_dtype,
        device_of("text.t5_device", t5_device, device), ("text_encoder_2", "tokenizer_2"),
    )  # fmt: skip
    return FrozenText(ClipT5(Clip(clip_source), T5(t5_source)), padding, cache, device)
