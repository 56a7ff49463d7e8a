"""FLUX.1's autoencoder in miniature, with random weights, and in the file of a download."""

from pathlib import Path

import torch

from fluxsmith.autoencoder.flux_ae import FluxAutoencoder
from fluxsmith.autoencoder.flux_files import Settings, build
from fluxsmith.autoencoder.network import AutoencoderNetwork, AutoencoderParams
from fluxsmith.storage.model_parts import read_part
from fluxsmith.storage.tensor_files import write_tensors

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


def file_metadata(autoencoder: FluxAutoencoder) -> dict[str, str]:
    """The shift and scale that a single file carries beside its weights."""
    return {"shift_factor": repr(autoencoder.shift), "scaling_factor": repr(autoencoder.scale)}


def read_autoencoder(path: Path) -> FluxAutoencoder:
    return build(Settings(str(path)), "cpu", read_part)


def save_autoencoder(path: Path, params: AutoencoderParams = TINY, seed: int = 0) -> Path:
    """A single file under BFL's names."""
    write_tensors(path, tiny_network(params, seed).state_dict(), {})
    return path
