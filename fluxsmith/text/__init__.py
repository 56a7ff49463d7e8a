"""From prompts to what the network is conditioned on.

An encoder is a module with a dataclass `Settings`, its keys in a config's text section, and a
function `build` from these to a `TextEncoder`, and one line in `ENCODERS`. The module is imported
when it is asked for, so that no encoder pays for another's libraries.
"""

from importlib import import_module
from typing import Protocol

import torch

from fluxsmith.text.cache import Store
from fluxsmith.text.encoder import TextEncoder

ENCODERS = {
    "bytes": "fluxsmith.text.byte_encoder",
    "clip_t5": "fluxsmith.text.clip_t5",
    "transformers": "fluxsmith.text.any_encoder",
}


class TextSettings(Protocol):
    """A config's text section; the encoder's own keys stand beside its name."""

    encoder: str


def build(settings: TextSettings, device: torch.device, store: Store) -> TextEncoder:
    """A text encoder for a network on `device`; `store` keeps the embeddings of a frozen one.

    What is learned is drawn from torch's global generator, on the CPU.
    """
    encode: TextEncoder = import_module(ENCODERS[settings.encoder]).build(settings, device, store)
    return encode
