"""FLUX.1's own text encoders: T5's tokens, and CLIP's pooled vector.

With `full` padding this is what FLUX.1 was trained on and diffusers' FluxPipeline computes: T5
reads its padding unmasked. CLIP is causal, so what pads it can't reach its pooled vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch

from fluxsmith.text.cache import Store
from fluxsmith.text.encoder import TooLong, Width
from fluxsmith.text.frozen import CacheChoice, FrozenText, Padding
from fluxsmith.text.padding import Encoded
from fluxsmith.text.pretrained import Device, Dtype, Pretrained
from fluxsmith.text.single_file import CLIP_PREFIX, SingleFile, clip_config, t5_config


class Clip(Pretrained):
    families = ("clip", "clip_text_model")

    def model_class(self, transformers: Any) -> Any:
        return transformers.CLIPTextModel


class T5(Pretrained):
    families = ("t5", "mt5")

    def model_class(self, transformers: Any) -> Any:
        return transformers.T5EncoderModel


class ClipFile(SingleFile, Clip):
    prefix = CLIP_PREFIX
    tokenizer_id = "openai/clip-vit-large-patch14"
    shapes = staticmethod(clip_config)


class T5File(SingleFile, T5):
    tokenizer_id = "google/t5-v1_1-xxl"
    shapes = staticmethod(t5_config)


@dataclass(frozen=True)
class Settings:
    LOCAL: ClassVar = ("clip", "clip_device", "t5", "t5_device", "cache")

    padding: Padding = "trim"
    cache: CacheChoice = "auto"
    too_long: TooLong = "cut"
    clip: Annotated[str, "Hub id, folder or single file of CLIP."] = "openai/clip-vit-large-patch14"
    clip_tokens: Annotated[Width, "Tokens that CLIP reads of a prompt."] = 77
    clip_dtype: Annotated[Dtype, "Arithmetic of CLIP."] = "float32"
    clip_device: Annotated[Device, "Where CLIP runs; network is where the network runs."] = (
        "network"
    )
    t5: Annotated[str, "Hub id, folder or single file of T5."] = "google/t5-v1_1-base"
    t5_tokens: Annotated[
        Width, "Tokens of a prompt that the network gets; FLUX.1 dev takes 512."
    ] = 128
    t5_dtype: Annotated[Dtype, "Arithmetic of T5."] = "float32"
    t5_device: Annotated[Device, "Where T5 runs; network is where the network runs."] = "network"


class ClipT5(FrozenText):
    kind = "clip_t5"

    def __init__(self, settings: Settings, device: torch.device, store: Store) -> None:
        nested = ("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")
        one, two = (Path(name).expanduser().is_file() for name in (settings.clip, settings.t5))
        clip, t5 = ClipFile if one else Clip, T5File if two else T5
        self.clip = clip(settings, "clip", "clip_tokens", device, nested[0])
        self.t5 = t5(settings, "t5", "t5_tokens", device, nested[1])
        parts = {"clip": self.clip, "t5": self.t5}
        super().__init__(parts, self.t5, settings.padding, device, store)

    def widths(self) -> tuple[int, int]:
        return self.t5.width, self.clip.width

    def encode(self, prompts: Sequence[str]) -> list[Encoded]:
        read = self.t5.tokenize(prompts, self.full)
        mask = None if self.full else read.mask
        tokens = self.t5.model(read.ids, attention_mask=mask).last_hidden_state.cpu()  # (n, l, d)
        pooled = self.clip.model(self.clip.tokenize(prompts).ids).pooler_output.cpu()  # (n, p)
        return [
            Encoded(row if self.full else row[:n], vector, n, needed)
            for row, vector, n, needed in zip(tokens, pooled, read.real, read.needed, strict=True)
        ]


build = ClipT5
