"""The pictures that a run is looked at with, which it does not train on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.data import load
from fluxsmith.data.images import to_unit
from fluxsmith.data.imageset import evenly
from fluxsmith.data.loader import Batch
from fluxsmith.errors import UserError
from fluxsmith.pipeline import caption_fault
from fluxsmith.randomness import generator
from fluxsmith.sampling.edit import Edit, held_out_edit

HELD_OUT = 2048  # pictures, at most


@dataclass(frozen=True)
class HeldOut:
    """Pictures that are not trained on, with one caption each."""

    images: Tensor  # (n, c, h, w) uint8
    captions: list[str]
    references: Tensor | None = None  # likewise, of sets of pairs

    @classmethod
    def load(cls, config: RunConfig) -> "HeldOut":
        """Some of the test images, with captions, in an order that has an address."""
        data = load(config.data, "test", caption_fault(config), enough=HELD_OUT)
        draw = generator(config.seed, "held out")
        order = torch.randperm(len(data), generator=draw)[:HELD_OUT]
        which = torch.rand(len(order), generator=draw).tolist()
        ways = [data.captions[label] for label in data.labels[order].tolist()]
        captions = [each[int(u * len(each))] for each, u in zip(ways, which, strict=True)]
        references = None if data.references is None else data.references[order]
        return cls(data.images[order], captions, references)

    def __len__(self) -> int:
        return len(self.captions)

    def batches(self, n: int, size: int, device: torch.device) -> Iterator[Batch]:
        """The first n in batches."""
        for i in range(0, min(n, len(self)), size):
            rows = slice(i, min(i + size, n))
            references = None
            if self.references is not None:
                references = to_unit(self.references[rows].to(device))
            images = to_unit(self.images[rows].to(device))
            yield Batch(images, self.captions[rows], references=references)


def shown(config: RunConfig, captions: Sequence[str]) -> tuple[Sequence[str], Edit | None]:
    """The prompts of the grids during training, captions by default, and the held-out pictures that
    they are drawn from, where the model is given some."""
    sample, conditioning = config.sample, config.model.conditioning
    if conditioning == "text":
        return sample.prompts or evenly(captions, sample.num_samples), None
    held_out = HeldOut.load(config)
    if not len(held_out):
        raise UserError("this model draws from test images, and there are none; keep some")
    n = len(sample.prompts or []) or sample.num_samples
    rows = [i % len(held_out) for i in range(n)]
    references = None if held_out.references is None else held_out.references[rows]
    edit = held_out_edit(
        conditioning, held_out.images[rows], references, config.seed, range(len(rows))
    )
    return sample.prompts or [held_out.captions[row] for row in rows], edit
