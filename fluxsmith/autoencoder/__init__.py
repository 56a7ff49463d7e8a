"""Between images and what the flow runs on: pixels themselves, or the latents of an autoencoder."""

from typing import Protocol

import torch
from torch import Tensor

from fluxsmith.autoencoder.flux_files import read_autoencoder
from fluxsmith.autoencoder.pixel import PixelAutoencoder


class Autoencoder(Protocol):
    """Images (b, image_channels, H, W) in [-1, 1] to latents (b, channels, H/factor, W/factor) and
    back. Frozen: it is no part of what is trained, averaged or saved."""

    @property
    def channels(self) -> int: ...

    @property
    def image_channels(self) -> int: ...

    @property
    def factor(self) -> int: ...

    @property
    def digest(self) -> str | None:
        """Names its weights; None where it has none."""
        ...

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


def build(
    kind: str,
    device: torch.device | str,
    *,
    image_channels: int,
    weights: str | None,
    tile_size: int,
    max_batch: int,
) -> Autoencoder:
    """The autoencoder on `device`; the settings are those of the config's autoencoder section."""
    if kind == "pixel":
        return PixelAutoencoder(image_channels)
    assert weights is not None
    return read_autoencoder(weights, tile_size=tile_size, max_batch=max_batch).to(device)
