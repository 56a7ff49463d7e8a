"""FLUX.1 schnell at full size with random weights: how long loading takes, how much memory a step.

    python benchmarks/full_size.py FILE [--size 256] [--dtype bfloat16] [--offload none|blocks]

writes FILE (23.8 GB, unless it is there), in the shapes, names and dtype of the released file, and
takes one step at size x size with 256 text tokens. Delete the file afterwards.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from fluxsmith.device import DTYPES, peak_memory, pick_device
from fluxsmith.interop.infer_params import check_fits
from fluxsmith.interop.read_weights import read_weights
from fluxsmith.kernels.offload import place
from fluxsmith.model.flux import PRESETS, Flux
from fluxsmith.model.tokens import image_ids, text_ids
from fluxsmith.randomness import generator

PARAMS = PRESETS["flux1-schnell"]
TEXT_TOKENS = 256
DRAWN = 2**24 + 1  # random numbers in all; odd, so that rows differ


def write_random(path: Path) -> None:
    """A safetensors file, one tensor after the other: all together would not fit into memory."""
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in Flux(PARAMS).state_dict().items()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    drawn = torch.randn(DRAWN, generator=generator(0, "weights")).mul_(0.02).bfloat16()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            ones = name.endswith("scale")
            tensor = torch.ones(shape).bfloat16() if ones else repeated(drawn, shape)
            file.write(tensor.flatten().view(torch.uint8).numpy().data)


def repeated(drawn: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The same draws over and over: their values don't matter here."""
    return drawn.repeat(1 + torch.Size(shape).numel() // len(drawn))[: torch.Size(shape).numel()]


def memory() -> str:
    """What is resident now, apart for what is the process's own and what is mapped from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    parts = {key: int(sizes[key].split()[0]) / 2**20 for key in ("RssAnon", "RssFile")}
    return f"own {parts['RssAnon']:.2f} GiB, mapped {parts['RssFile']:.2f} GiB"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--offload", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-step", action="store_true")
    options = parser.parse_args()
    device = pick_device(options.device)
    if not options.file.exists():
        began = time.perf_counter()
        write_random(options.file)
        print(f"written     {options.file.stat().st_size / 1e9:.1f} GB in "
              f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip

    began = time.perf_counter()
    with torch.device("meta"):
        network = Flux(PARAMS)
    weights = read_weights(options.file)
    check_fits(weights.network, PARAMS, weights.origin)
    network.load_state_dict(weights.network, assign=True)
    place(network, device, DTYPES[options.dtype], options.offload)
    print(f"loaded      in {time.perf_counter() - began:.2f} s; {memory()}", flush=True)
    if options.no_step:
        return

    side = options.size // 16
    draw = generator(0, "step")
    inputs = {
        "img": torch.randn(1, side * side, 64, generator=draw).to(device),
        "img_ids": image_ids(side, side, device),
        "txt": torch.randn(1, TEXT_TOKENS, 4096, generator=draw).to(device),
        "txt_ids": text_ids(TEXT_TOKENS, device),
        "timesteps": torch.ones(1, device=device),
        "y": torch.randn(1, 768, generator=draw).to(device),
    }
    for step in (1, 2):
        began = time.perf_counter()
        v = network(**inputs)
        assert v.isfinite().all()
        seconds = time.perf_counter() - began
        print(f"step {step}      {seconds:.0f} s at {options.size}x{options.size}; {memory()}; "
              f"peak {(peak_memory(device) or 0) / 2**30:.2f} GiB", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
