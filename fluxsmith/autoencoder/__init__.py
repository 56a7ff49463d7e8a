"""Between images and what the flow runs on: pixels themselves, or the latents of an autoencoder."""

from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from fluxsmith.autoencoder.flux_files import Reader


class Autoencoder(Protocol):
    """Images (b, image_channels, H, W) in [-1, 1] to latents (b, channels, H/factor, W/factor) and
    back. Frozen: it is no part of what is trained, averaged or saved."""

    channels: int
    image_channels: int
    factor: int
    bound: float  # of latents: beyond it, either way, what is drawn of them stays the same
    dtype: torch.dtype  # that latents have in training, whose last bits a cache doesn't keep

    @property
    def digest(self) -> str | None:
        """Names its weights; None where it has none."""

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


# A kind is a module with a dataclass `Settings`, its keys in a config's autoencoder section (none
# where it has no keys), and a function `build`. It is imported when it is asked for.
AUTOENCODERS = {
    "pixel": "fluxsmith.autoencoder.pixel",
    "flux": "fluxsmith.autoencoder.flux_files",
}


def build(
    settings: Any, device: torch.device | str, read: Reader, image_channels: int
) -> Autoencoder:
    """The autoencoder of a config's section on `device`, its files opened by `read`, for images of
    so many channels where it leaves that open."""
    module = import_module(AUTOENCODERS[settings.kind])
    autoencoder: Autoencoder = module.build(settings, device, read, image_channels)
    return autoencoder
