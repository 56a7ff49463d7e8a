"""What a training step of a LoRA on FLUX.1 dev takes of memory: computed for the whole network, and
for a part of its depth both computed and measured.

    python benchmarks/lora_memory.py [--depth 5 10] [--base bfloat16|float8] [--size 128]
        [--text 32] [--rank 16]

Computed: the weights as they are kept, 16 more bytes for each parameter of the LoRA (its gradient,
AdamW's two moments and its average), and what the forward pass keeps for the backward pass, counted
on tensors without numbers. Measured, on Linux and a CPU: the most that the process holds in a
step, above what it held before the network was made.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxsmith.adapters.lora import Settings
from fluxsmith.device import peak_memory
from fluxsmith.model.flux import PRESETS, Flux, FluxParams
from fluxsmith.model.tokens import image_ids, text_ids
from fluxsmith.training.averages import EMA

GIB = 2**30
PARAMS = PRESETS["flux1-dev"]
CPU = torch.device("cpu")


def network_of(params: FluxParams, settings: Settings, device: str) -> Flux:
    """With weights of no meaning, which are never in float32, or without any on the meta device."""
    with torch.device("meta"):
        network = Flux(params).to(torch.bfloat16)
        if device == "meta":
            settings.attach(network, seed=0)
            table = network.rotary  # which is computed on the CPU
            network.rotary = lambda *ids: tuple(x.to("meta") for x in table(*ids))
            return network
    network = network.to_empty(device=device)
    for p in network.parameters():
        nn.init.constant_(p, 0.01)
    settings.attach(network, seed=0)
    return network


def velocity(network: Flux, size: int, text: int) -> Tensor:
    params, side = network.params, size // 16
    with network.img_in.weight.device:
        given = {
            "img": torch.zeros(1, side * side, params.in_channels),
            "txt": torch.zeros(1, text, params.context_in_dim),
            "timesteps": torch.full((1,), 0.5),
            "y": torch.zeros(1, params.vec_in_dim),
            "guidance": torch.ones(1),
        }
    return network(img_ids=image_ids(side, side, CPU), txt_ids=text_ids(text, CPU), **given)


class FusedAttention(torch.autograd.Function):
    """It keeps what fused attention keeps; the meta device has only the plain one."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out


def computed(params: FluxParams, settings: Settings, size: int, text: int) -> dict[str, float]:
    """The parts of a step's memory, in GiB."""
    network = network_of(params, settings, "meta")
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, int] = {}  # bytes by storage

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, attn_mask: FusedAttention.apply(q, k, v)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = velocity(network, size, text)  # whose graph holds what is counted
    F.scaled_dot_product_attention = plain
    weights = sum(p.nbytes for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    activations = sum(n for storage, n in kept.items() if storage not in own)
    del out
    parts = {"weights": weights, "training": 16 * trained, "activations": activations}
    return {name: part / GIB for name, part in parts.items()}


def measured(params: FluxParams, settings: Settings, size: int, text: int) -> float:
    """The most that a step holds, in GiB."""
    before = peak_memory(CPU)
    network = network_of(params, settings, "cpu")
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser, ema = torch.optim.AdamW(trained, fused=True), EMA(network, 0.99)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    for p in trained:  # the optimiser makes its state in its first step, which is left out
        p.grad = torch.zeros_like(p)
    optimiser.step()
    optimiser.zero_grad()
    velocity(network, size, text).square().mean().backward()
    optimiser.step()
    ema.update(network.parameters(), 0.1)
    return (peak_memory(CPU) - before) / GIB


def shown(name: str, parts: dict[str, float]) -> None:
    told = ", ".join(f"{part} {gib:.2f}" for part, gib in parts.items())
    print(f"{name}: {told}; in all {sum(parts.values()):.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, nargs=2, default=(5, 10))
    parser.add_argument("--base", choices=("bfloat16", "float8"), default="bfloat16")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--text", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    given = parser.parse_args()
    settings = Settings(rank=given.rank, base_dtype=given.base)
    dual, single = given.depth
    part = replace(PARAMS, depth=dual, depth_single_blocks=single)
    for size, text in ((given.size, given.text), (512, 512), (1024, 512)):
        shown(f"FLUX.1 dev, {size} pixels", computed(PARAMS, settings, size, text))
    name = f"{dual} dual and {single} single blocks, {given.size} pixels"
    shown(name, computed(part, settings, given.size, given.text))
    print(f"{name}: measured {measured(part, settings, given.size, given.text):.2f} GiB")


if __name__ == "__main__":
    main()
