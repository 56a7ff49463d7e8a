"""FLUX.1's autoencoder as the flow sees it: frozen, its latents centred and scaled."""

import hashlib
import math
from functools import cached_property

import torch
from torch import Tensor, nn

from fluxsmith.autoencoder.network import AutoencoderNetwork
from fluxsmith.autoencoder.tiling import tiled

# Of FLUX.1: the flow runs on (latent - SHIFT) * SCALE, which has about unit variance.
SHIFT, SCALE = 0.1159, 0.3611


class FluxAutoencoder:
    """Not a module, so that nothing trains, averages, saves or switches it with the network.

    `tile_size`, in pixels: larger pictures are coded in overlapping tiles; 0: never.
    `max_batch`: so many pictures are coded at once; 0: the whole batch. `dtype`: what latents are
    rounded to in training.
    """

    bound = math.inf

    def __init__(
        self,
        network: AutoencoderNetwork,
        shift: float = SHIFT,
        scale: float = SCALE,
        tile_size: int = 0,
        max_batch: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.shift = shift
        self.scale = scale
        self.channels = network.params.z_channels
        self.image_channels = network.params.in_channels
        self.factor = network.params.factor
        self.tile = max(1, tile_size // self.factor) if tile_size else 0
        self.max_batch = max_batch
        self.dtype = dtype

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(b, c, H, W) in [-1, 1] -> (b, z, H/f, W/f): the mean of each latent."""
        moments = self._in_pieces(self.network.encoder, images.float(), unit=self.factor, to=1)
        means, _ = moments.chunk(2, dim=1)
        return (means - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(b, z, h, w) -> (b, c, f h, f w) in about [-1, 1]."""
        z = latents.float() / self.scale + self.shift
        return self._in_pieces(self.network.decoder, z, unit=1, to=self.factor)

    @cached_property
    def digest(self) -> str:
        """A short digest of every weight and of shift and scale; names the autoencoder."""
        found = hashlib.sha256(repr((self.shift, self.scale)).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    def round_to(self, dtype: torch.dtype) -> None:
        """Makes its weights what they are once they were written in `dtype`."""
        self.network.to(dtype).float()
        self.__dict__.pop("digest", None)

    def _in_pieces(self, code: nn.Module, x: Tensor, unit: int, to: int) -> Tensor:
        pieces = x.split(self.max_batch or len(x))
        return torch.cat([tiled(code, piece, self.tile, unit, to) for piece in pieces])
