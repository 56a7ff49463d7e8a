"""What a training step of a LoRA on FLUX.1 dev takes of memory: as `fluxsmith plan` computes it for
the whole network, and for a part of its depth both computed and measured.

    python benchmarks/lora_memory.py [--depth 5 10] [--size 64] [--text 32] [KEY=VALUE ...]

Measured, on Linux and a CPU: the most that this process holds in a step, above what it held before
the network was made. Weights, text and pictures are made up; the autoencoder has FLUX.1's sizes.
"""

import argparse
import sys
from pathlib import Path

import torch

from fluxsmith.config import RunConfig, read_config
from fluxsmith.device import peak_memory, resident_memory
from fluxsmith.kernels.memory import keep_freed_memory
from fluxsmith.planning.outline import Outline
from fluxsmith.planning.trace import traced

GIB = 2**30
DEV = Path(__file__).parents[1] / "configs" / "flux1" / "dev.yaml"
LORA = (
    "train.adapter.kind=lora", "train.init_from=made-up", "train.batch_size=1", "device=cpu",
)  # fmt: skip


def planned(outline: Outline, config: RunConfig, name: str) -> None:
    parts = {part: size / GIB for part, size in traced(outline, config).at_most().items() if size}
    told = ", ".join(f"{part} {gib:.2f}" for part, gib in parts.items())
    print(f"{name}: {told}; in all {sum(parts.values()):.2f} GiB", flush=True)


def measured(outline: Outline, config: RunConfig) -> float:
    """The most that a step holds, in GiB."""
    before = resident_memory() or 0
    trainer = outline.trainer(config)
    trained, optimiser = trainer.update.trained, trainer.optimiser
    for p in trained:  # it makes its state at its first step: so that the one that follows has it
        p.grad = torch.zeros_like(p)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    trainer.train_step(outline.batch(outline.fullest(1)))
    return ((peak_memory(torch.device("cpu")) or 0) - before) / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, nargs=2, default=(5, 10))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--text", type=int, default=32)
    given, more = parser.parse_known_args()
    dual, single = given.depth
    keep_freed_memory()  # as training does
    for size in (512, 1024):
        config = read_config(DEV, [*LORA, f"data.image_size={size}", *more])
        planned(Outline.of(config), config, f"FLUX.1 dev, {size} pixels")
    sizes = (f"data.image_size={given.size}", f"text.t5_tokens={given.text}")
    depth = (f"model.depth={dual}", f"model.depth_single_blocks={single}")
    config = read_config(DEV, [*LORA, *sizes, *depth, *more])
    outline = Outline.of(config)
    name = f"{dual} dual and {single} single blocks, {given.size} pixels"
    planned(outline, config, name)
    print(f"{name}: measured {measured(outline, config):.2f} GiB")


if __name__ == "__main__":
    sys.exit(main())
