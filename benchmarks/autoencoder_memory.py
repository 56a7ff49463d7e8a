"""What decoding takes with FLUX.1's autoencoder at full size: whole, in tiles, picture by picture.

    python benchmarks/autoencoder_memory.py [--size 1024] [--batch 1] [--tile 512] [--max-batch 0]

decodes random latents with random weights, once, and prints the process's peak memory before and
after. Settings are measured apart, each in a process of its own.
"""

import argparse
import time

import torch

from fluxsmith.autoencoder.flux_ae import FluxAutoencoder
from fluxsmith.autoencoder.network import AutoencoderNetwork, AutoencoderParams
from fluxsmith.device import peak_memory, pick_device
from fluxsmith.randomness import generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tile", type=int, default=0, help="autoencoder.tile_size; 0: whole")
    parser.add_argument("--max-batch", type=int, default=0, help="autoencoder.max_batch; 0: all")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = pick_device(options.device)
    with torch.random.fork_rng(devices=[]):
        network = AutoencoderNetwork(AutoencoderParams())
    autoencoder = FluxAutoencoder(network, tile_size=options.tile, max_batch=options.max_batch).to(
        device
    )
    side = options.size // autoencoder.factor
    shape = options.batch, autoencoder.channels, side, side
    latents = torch.randn(shape, generator=generator(0, "latents")).to(device)
    before = peak_memory(device) or 0
    began = time.perf_counter()
    pictures = autoencoder.decode(latents)
    assert pictures.isfinite().all()
    seconds = time.perf_counter() - began
    peak = peak_memory(device) or 0
    print(
        f"{options.batch} of {options.size}x{options.size}, tile_size {options.tile}, max_batch "
        f"{options.max_batch}: peak {peak / 2**30:.2f} GiB, {before / 2**30:.2f} before decoding; "
        f"{seconds:.0f} s on {device}"
    )


if __name__ == "__main__":
    main()
