"""How far a step moved the weights and their average, by kind of block."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fluxsmith.parallel.shares import Whole
from fluxsmith.pipeline import Pipeline
from fluxsmith.training.averages import EMA

SAMPLED = 1024  # weights of a tensor, about, that are looked at
MANTISSA = 0x1FFF  # the bits of a float32 that no bfloat16 and no float16 has
TINY = 1e-12


def kind_of(name: str) -> str:
    """The kind of block that a parameter belongs to, by its name in a pipeline."""
    part, *path = name.split(".")
    if part != "network":
        return part
    if path[-1].startswith("lora_"):  # whose size says nothing of the size of what they change
        return "adapter"
    if any("mod" in piece for piece in path):
        return "modulation"
    kinds = {"double_blocks": "dual", "single_blocks": "single", "final_layer": "final"}
    return kinds.get(path[0], "embedders")


def kinds_of(model: nn.Module, parameters: Iterable[nn.Parameter]) -> list[str]:
    """The kind of each; "other" for what is no part of the model."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [kind_of(names.get(id(p), "other")) for p in parameters]


class Movement:
    """Of some of each tensor's weights, which stand for the others."""

    def __init__(self, pipeline: Pipeline, held: Whole, ema: EMA) -> None:
        self.held = held
        self.ema = ema
        self._before = torch.empty(0)
        kinds, sizes = [], []
        whole = dict(pipeline.named_parameters())
        for name, _ in held.parts.named_parameters():  # those that are trained
            kinds.append(kind_of(name))
            n = whole[name].numel()
            sizes.append((len(range(0, n, _stride(whole[name]))), n))
        self.kinds = tuple(dict.fromkeys(kinds))
        of = [
            torch.full((n,), self.kinds.index(kind))
            for kind, (n, _) in zip(kinds, sizes, strict=True)
        ]
        self._rows = {kind: torch.cat(of) == i for i, kind in enumerate(self.kinds)}
        # how many of a tensor's weights each that is looked at stands for
        self._stands_for = torch.cat([torch.full((n,), whole / n) for n, whole in sizes])

    def begin(self) -> None:
        """To be called before a step."""
        self._before = self._sampled()

    def _sampled(self) -> Tensor:
        """Some of the weights, and of their averages: (2, n), float32."""
        parts = list(self.held.parts.parameters())
        both = parts, self.ema.weights.values()
        return torch.stack(
            [
                _thinned(self.held.gathered(p, x.detach()) for p, x in zip(parts, of, strict=True))
                for of in both
            ]
        )

    def end(self) -> dict[str, float]:
        """How far the last step went, as a share of the weights, by kind of block; how far the
        average went of its way to the weights; and how many weights are in half precision."""
        (weights, average), (new_weights, new_average) = self._before.cpu(), self._sampled().cpu()

        def size(x: Tensor, rows: Tensor | slice = slice(None)) -> float:
            return float((x.square() * self._stands_for)[rows].sum().sqrt())

        def update(rows: Tensor) -> float:
            return size(new_weights - weights, rows) / max(size(weights, rows), TINY)

        record = {f"update/{kind}": update(rows) for kind, rows in self._rows.items()}
        blocks = [self._rows[kind] for kind in ("dual", "single") if kind in self._rows]
        record["update/blocks"] = update(torch.stack(blocks).any(0)) if blocks else math.nan
        way = size(new_weights - average)
        record["average_step"] = size(new_average - average) / way if way else math.nan
        rounded = new_weights.view(torch.int32) & MANTISSA == 0
        record["half_precision"] = float(rounded[new_weights != 0].float().mean())
        return record


def _thinned(tensors: Iterable[Tensor]) -> Tensor:
    """Every n-th weight of each, about SAMPLED of them or all: (m,), float32."""
    return torch.cat([x.flatten()[:: _stride(x)].float() for x in tensors])


def _stride(x: Tensor) -> int:
    return max(1, x.numel() // SAMPLED)
