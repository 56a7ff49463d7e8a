"""The pictures that a run is looked at with, which it does not train on."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.data import load
from fluxsmith.data.images import to_unit
from fluxsmith.data.loader import Batch
from fluxsmith.pipeline import caption_fault
from fluxsmith.randomness import generator

HELD_OUT = 2048  # pictures, at most


@dataclass(frozen=True)
class HeldOut:
    """Pictures that are not trained on, with one caption each."""

    images: Tensor  # (n, c, h, w) uint8
    captions: list[str]

    @classmethod
    def load(cls, config: RunConfig) -> "HeldOut":
        """Some of the test images, with captions, in an order that has an address."""
        data = load(config.data, "test", caption_fault(config), enough=HELD_OUT)
        draw = generator(config.seed, "held out")
        order = torch.randperm(len(data), generator=draw)[:HELD_OUT]
        which = torch.rand(len(order), generator=draw).tolist()
        ways = [data.captions[label] for label in data.labels[order].tolist()]
        captions = [each[int(u * len(each))] for each, u in zip(ways, which, strict=True)]
        return cls(data.images[order], captions)

    def __len__(self) -> int:
        return len(self.captions)

    def batches(self, n: int, size: int, device: torch.device) -> Iterator[Batch]:
        """The first n in batches."""
        for i in range(0, min(n, len(self)), size):
            rows = slice(i, min(i + size, n))
            yield Batch(to_unit(self.images[rows].to(device)), self.captions[rows])
