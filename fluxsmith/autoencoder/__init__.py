"""Between images and what the flow runs on: pixels themselves, or the latents of an autoencoder."""

from typing import Protocol

from torch import Tensor


class Autoencoder(Protocol):
    """Images (b, c, H, W) in [-1, 1] to latents (b, channels, H/factor, W/factor) and back."""

    @property
    def channels(self) -> int: ...

    @property
    def factor(self) -> int: ...

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...
