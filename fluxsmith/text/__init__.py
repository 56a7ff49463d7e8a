"""From prompts to what the network is conditioned on.

An encoder is one function `build` from its settings to a `TextEncoder`, and one line in `ENCODERS`.
Their modules are imported when they are asked for, so that no encoder pays for another's libraries.
"""

from importlib import import_module
from typing import Any

import torch

from fluxsmith.text.encoder import TextEncoder

ENCODERS = {
    "bytes": "fluxsmith.text.byte_encoder",
    "clip_t5": "fluxsmith.text.clip_t5",
    "transformers": "fluxsmith.text.any_encoder",
}


def build(encoder: str, device: torch.device, **settings: Any) -> TextEncoder:
    """A text encoder for a network on `device`; `settings` are those of the config's text section.

    What is learned is drawn from torch's global generator, on the CPU.
    """
    encode: TextEncoder = import_module(ENCODERS[encoder]).build(device=device, **settings)
    return encode
