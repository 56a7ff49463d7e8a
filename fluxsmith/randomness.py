"""Randomness has an address.

Every generator is seeded from a tuple that says what it is for, such as ``(seed, "noise", step)``.
Nothing is drawn from a global stream, so a sample does not depend on the batch that it was drawn
in, and a resumed run needs no hidden state to go on exactly.
"""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor


def address_seed(*address: int | str) -> int:
    """A 63-bit seed from an address: equal addresses give equal seeds on every platform."""
    text = json.dumps(address)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*address: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded from its address."""
    return torch.Generator(device).manual_seed(address_seed(*address))


def image_noise(
    shape: tuple[int, ...], seed: int, indices: Sequence[int], step: int | None = None
) -> Tensor:
    """Standard normal noise (n, *shape), one generator an image, addressed by (seed, index): what a
    picture starts from, or what step `step` of a stochastic solver adds to it.

    Drawn on the CPU in float32, so that every device has the same noise.
    """
    then = () if step is None else ("step", step)
    drawn = [torch.randn(shape, generator=generator(seed, "image", i, *then)) for i in indices]
    return torch.stack(drawn)
