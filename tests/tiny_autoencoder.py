"""FLUX.1's autoencoder in miniature, with random weights, and in the file of a download."""

from pathlib import Path

import torch
from torch import Tensor

from fluxsmith.autoencoder.flux_ae import FluxAutoencoder
from fluxsmith.autoencoder.flux_files import file_metadata
from fluxsmith.autoencoder.network import AutoencoderNetwork, AutoencoderParams
from fluxsmith.tensorfile import write_tensors

TINY = AutoencoderParams(ch=32, ch_mult=(1, 1, 2), num_res_blocks=1, z_channels=4)  # factor 4


def tiny_network(params: AutoencoderParams = TINY, seed: int = 0) -> AutoencoderNetwork:
    """Weights as PyTorch draws them, the norms' scales and all biases moved from where they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoencoderNetwork(params)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
    return network.eval()


def tiny_autoencoder(params: AutoencoderParams = TINY, **settings: float) -> FluxAutoencoder:
    return FluxAutoencoder(tiny_network(params), **settings)


def save_autoencoder(path: Path, params: AutoencoderParams = TINY, seed: int = 0) -> Path:
    """A single file under BFL's names."""
    write_tensors(path, tiny_network(params, seed).state_dict(), {})
    return path


@torch.no_grad()
def save_standardised(path: Path, images: Tensor) -> Path:
    """A single file likewise, with the shift and scale that give these images' latents mean 0 and
    variance 1, as FLUX.1's have: those of random weights are small."""
    network = tiny_network()
    latents = network.encoder(images)[:, : TINY.z_channels]
    own = FluxAutoencoder(network, shift=latents.mean().item(), scale=1 / latents.std().item())
    write_tensors(path, network.state_dict(), file_metadata(own))
    return path
