"""`train.adapter.kind: lora`: which layers it changes, how it begins, what a checkpoint has."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from fluxsmith.adapters.layers import add, keep_in_float8
from fluxsmith.adapters.low_rank import LowRank
from fluxsmith.device import DTYPES, computing_dtype
from fluxsmith.errors import UserError
from fluxsmith.model.flux import Flux
from fluxsmith.randomness import generator

TARGETS = ("attention", "mlp", "modulation", "embedders", "final")
STACKS = {"dual": "double_blocks", "single": "single_blocks"}
BLOCKS = re.compile(r"(dual|single)(?:\.(\d+)(?:-(\d+))?)?")


@dataclass(frozen=True)
class Settings:
    rank: Annotated[int, Ge(1), Le(2**12), "Rank of the change to each layer's weight."] = 16
    alpha: Annotated[
        float | None, Gt(0), "The change is scaled by alpha / rank; by 1 where it isn't set."
    ] = None
    targets: Annotated[
        list[str], "Layers that it changes: attention, mlp, modulation, embedders, final, or all."
    ] = field(default_factory=lambda: ["attention", "mlp"])
    blocks: Annotated[
        list[str], "The blocks whose layers these are, such as dual, single, dual.0-3, single.7."
    ] = field(default_factory=lambda: ["dual", "single"])
    dropout: Annotated[float, Ge(0), Lt(1), "Share of a layer's inputs that its change drops."] = 0
    base_dtype: Annotated[
        Literal["stored", "float32", "bfloat16", "float8"],
        "The frozen network: as it is stored (fp8 in bfloat16), or in this; float8: its blocks.",
    ] = "stored"

    def __post_init__(self) -> None:
        known = (*TARGETS, "all")
        unknown = [target for target in self.targets if target not in known]
        if unknown or not self.targets:
            raise ValueError(f"targets={self.targets}: must be some of {', '.join(known)}")
        for part in self.blocks:
            if not BLOCKS.fullmatch(part):
                raise ValueError(
                    f"blocks={self.blocks}: {part} must be such as dual, single, dual.3, single.0-7"
                )

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def frozen_bytes(self) -> int:
        """The least that a parameter of the base takes."""
        return {"float32": 4, "float8": 1}.get(self.base_dtype, 2)

    def dtype_of(self, stored: torch.dtype) -> torch.dtype:
        """What the frozen network computes in."""
        return {**DTYPES, "float8": torch.bfloat16}.get(self.base_dtype, stored)

    def attach(self, network: Flux, seed: int) -> None:
        """Freezes the network, in the dtype asked for, and gives the layers chosen a change that
        is trained and begins at 0: A as a new linear layer, uniform up to 1 / sqrt(in), B zero (Hu
        et al. 2022, "LoRA", sec. 4.1), both in float32. A UserError where there is no layer."""
        network.requires_grad_(False)
        dtype = self.dtype_of(computing_dtype(network))
        if any(p.dtype != dtype for p in network.parameters()):
            network.to(dtype)
        if self.base_dtype == "float8":
            keep_in_float8(network.blocks)
        draw = generator(seed, "adapter")
        for name, rows in chosen(network, self):
            layer = network.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            bound, shape = layer.in_features**-0.5, (self.rank, layer.in_features)
            down = torch.empty(shape).uniform_(-bound, bound, generator=draw)
            up = torch.zeros(len(rows), self.rank)
            add(layer, LowRank(name, down, up, self.scale, rows.start), self.dropout)

    def changes_in(self, weights: Mapping[str, Tensor]) -> list[LowRank]:
        """The changes among a checkpoint's weights, which are those of a pipeline."""
        found = []
        for name, down in weights.items():
            parameter, _, ending = name.rpartition(".")
            if ending == "lora_A":
                up, layer = weights[f"{parameter}.lora_B"], parameter.removeprefix("network.")
                rows = _rows(layer, down.shape[1], 3 * down.shape[1] + len(up), self)
                found.append(LowRank(layer, down, up, self.scale, rows.start))
        return found


def chosen(network: Flux, settings: Settings) -> list[tuple[str, range]]:
    """The layers that targets and blocks name, with the rows of their weights."""
    blocks, found = _blocks(network, settings), []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            stack, *path = name.split(".")
            if stack not in blocks or int(path[0]) in blocks[stack]:
                found.append((name, _rows(name, layer.in_features, layer.out_features, settings)))
    if not any(rows for _, rows in found):
        raise UserError(
            f"train.adapter.targets={settings.targets}: no layer of train.adapter.blocks="
            f"{settings.blocks} is among these; name others"
        )
    return [(name, rows) for name, rows in found if rows]


def _blocks(network: Flux, settings: Settings) -> dict[str, set[int]]:
    """The numbers of the blocks that are named, by stack; a UserError for one that isn't there."""
    depths = {"dual": len(network.double_blocks), "single": len(network.single_blocks)}
    found: dict[str, set[int]] = {stack: set() for stack in STACKS.values()}
    for part in settings.blocks:
        match = BLOCKS.fullmatch(part)
        assert match is not None
        kind, first, last = match.groups()
        depth = depths[kind]
        numbers = range(depth) if first is None else range(int(first), int(last or first) + 1)
        if first is not None and (not numbers or numbers[-1] >= depth):
            raise UserError(
                f"train.adapter.blocks={part}: the network has {depth} {kind} blocks, numbered "
                f"from 0"
            )
        found[STACKS[kind]] |= set(numbers)
    return found


def _rows(layer: str, width: int, rows: int, settings: Settings) -> range:
    """Which rows of a layer's weight (rows, width) the targets name; an empty range for none.

    A single block's first layer makes queries, keys and values and the MLP's inner values in one;
    its second, which takes attention's output and the MLP's, counts as MLP.
    """
    stack, *path = layer.split(".")
    if stack not in STACKS.values():
        parts = {"final" if stack == "final_layer" else "embedders": range(rows)}
    elif path[1] == "linear1":
        parts = {"attention": range(3 * width), "mlp": range(3 * width, rows)}
    elif path[1].endswith(("mod", "modulation")):
        parts = {"modulation": range(rows)}
    else:
        parts = {"attention" if path[1].endswith("attn") else "mlp": range(rows)}
    named = [part for target, part in parts.items() if {target, "all"} & set(settings.targets)]
    return range(named[0].start, named[-1].stop) if named else range(0)
