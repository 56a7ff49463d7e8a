"""Any one pretrained encoder that `transformers` loads: its last hidden states are the tokens, and
their mean over the prompt is the pooled vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from fluxsmith.errors import UserError
from fluxsmith.text.cache import Store
from fluxsmith.text.encoder import TooLong, Width
from fluxsmith.text.frozen import CacheChoice, FrozenText, Padding
from fluxsmith.text.padding import Encoded
from fluxsmith.text.pretrained import Device, Dtype, Pretrained


class AnyEncoder(Pretrained):
    def model_class(self, transformers: Any) -> Any:
        """The class without a decoder, where there is one, and otherwise the plain model."""
        readers = transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
        if type(self.config) in readers:
            return transformers.AutoModelForTextEncoding
        return transformers.AutoModel

    def text_part(self, model: Any) -> nn.Module:
        if hasattr(model, "text_model"):  # the text half of CLIP and its like
            return model.text_model
        return model.get_encoder() if self.config.is_encoder_decoder else model


@dataclass(frozen=True)
class Settings:
    LOCAL: ClassVar = ("pretrained", "pretrained_device", "cache")

    pretrained: Annotated[str, "Hub id or folder of the encoder."]
    max_tokens: Annotated[Width, "Tokens of a prompt that the network gets."] = 128
    padding: Padding = "trim"
    cache: CacheChoice = "auto"
    too_long: TooLong = "cut"
    pretrained_dtype: Annotated[Dtype, "Arithmetic of the encoder."] = "float32"
    pretrained_device: Annotated[Device, "Where it runs; network is where the network runs."] = (
        "network"
    )


class OneEncoder(FrozenText):
    kind = "transformers"

    def __init__(self, settings: Settings, device: torch.device, store: Store) -> None:
        self.encoder = AnyEncoder(settings, "pretrained", "max_tokens", device)
        super().__init__(
            {"pretrained": self.encoder}, self.encoder, settings.padding, device, store
        )

    def widths(self) -> tuple[int, int]:
        return self.encoder.width, self.encoder.width

    def encode(self, prompts: Sequence[str]) -> list[Encoded]:
        read = self.encoder.tokenize(prompts, self.full)
        mask = torch.ones_like(read.mask) if self.full else read.mask
        encoded = []
        try:
            states = self.encoder.model(read.ids, attention_mask=mask.long()).last_hidden_state
        except (AttributeError, TypeError, ValueError):  # a model of something else
            raise UserError(
                f"text.pretrained={self.encoder.name}: gives no vector for each token of a text; "
                f"name an encoder of text"
            ) from None
        for row, n, needed in zip(states.cpu(), read.real, read.needed, strict=True):  # (l, d)
            pooled = row[:n].float().mean(dim=0).to(row.dtype)
            encoded.append(Encoded(row if self.full else row[:n], pooled, n, needed))
        return encoded


build = OneEncoder
