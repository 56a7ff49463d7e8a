"""Any one pretrained encoder that `transformers` loads: its last hidden states are the tokens, and
their mean over the prompt is the pooled vector."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fluxsmith.errors import UserError
from fluxsmith.text.frozen import FrozenText, device_of
from fluxsmith.text.padding import Encoded
from fluxsmith.text.pretrained import Pretrained, Source


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


class OneEncoder:
    """The encoder as `FrozenText` runs it."""

    kind = "transformers"

    def __init__(self, encoder: AnyEncoder) -> None:
        self.encoder = encoder
        self.reader: Pretrained = encoder
        self.parts: Mapping[str, Pretrained] = {"pretrained": encoder}

    def widths(self) -> tuple[int, int]:
        return self.encoder.width, self.encoder.width

    def encode(self, prompts: Sequence[str], full: bool) -> list[Encoded]:
        ids, needed = self.encoder.cut_ids(prompts)
        real = [len(row) for row in ids]
        rows, mask = self.encoder.padded(ids, self.encoder.source.max_tokens if full else max(real))
        states = self._states(rows, torch.ones_like(mask) if full else mask).cpu()  # (n, l, d)
        encoded = []
        for i, n in enumerate(real):
            pooled = states[i, :n].float().mean(dim=0).to(states.dtype)
            encoded.append(Encoded(states[i] if full else states[i, :n], pooled, n, needed[i]))
        return encoded

    def _states(self, rows: Tensor, mask: Tensor) -> Tensor:
        try:
            states = self.encoder.model(rows, attention_mask=mask.long()).last_hidden_state
            fits = states.shape[:2] == rows.shape
        except (AttributeError, TypeError, ValueError):  # a model of something else
            fits = False
        if not fits:
            source = self.encoder.source
            raise UserError(
                f"{source.key}={source.name}: gives no vector for each token of a text; name an "
                f"encoder of text"
            )
        return states


def build(
    *,
    pretrained: str,
    max_tokens: int,
    pretrained_dtype: str,
    pretrained_device: str,
    padding: str,
    cache: str,
    device: torch.device,
) -> FrozenText:
    """The encoder of this name, behind the cache; nothing is loaded yet."""
    on = device_of("text.pretrained_device", pretrained_device, device)
    source = Source(
        "text.pretrained", pretrained, max_tokens, "text.max_tokens", pretrained_dtype, on
    )
    return FrozenText(OneEncoder(AnyEncoder(source)), padding, cache, device)
