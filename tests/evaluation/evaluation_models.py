"""Models made to be seen through: they draw by taking pictures from a set."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fluxsmith.config.reading import build_config
from fluxsmith.data.images import to_unit
from fluxsmith.data.imageset import ImageSet
from fluxsmith.pipeline import Pipeline

DIGITS = {
    "data": {"source": "digits", "image_size": 16, "resize": "stretch"},
    "text": {"width": 64, "hidden_size": 64},
    "model": {
        "patch_size": 4, "hidden_size": 64, "num_heads": 1, "depth": 1, "depth_single_blocks": 1,
    },
    "sample": {"steps": 3},
}  # fmt: skip


SEED = 1_000_003  # further apart than any two samples


class Shown(Pipeline):
    """A pipeline that draws by taking pictures from a set, in a way that a test decides."""

    def __init__(self, pictures: ImageSet, pick) -> None:
        built = Pipeline.build(build_config(DIGITS, "test"))
        super().__init__(built.config, built.network, built.text, built.autoencoder)
        self.pictures, self.pick = pictures, pick

    def generate(self, prompts: Sequence[str], *, seed=0, first_index=0, **_) -> Tensor:
        labels = [
            next(i for i, ways in enumerate(self.pictures.captions) if prompt in ways)
            for prompt in prompts
        ]
        rows = [
            self.pick(self.pictures.labels, label, SEED * seed + first_index + i)
            for i, label in enumerate(labels)
        ]
        return to_unit(self.pictures.images[torch.tensor(rows)])


def of_the_label(labels: Tensor, label: int, number: int) -> int:
    """Pictures of the prompted label in turn, none twice before all were shown once."""
    rows = (labels == label).nonzero()[:, 0]
    seed, i = divmod(number, SEED)
    turn = 2 * (i // 20) + i % 2  # of twenty prompts in a row, two ask for this label
    return int(rows[(turn + 11 * seed) % len(rows)])


def the_first_of_the_label(labels: Tensor, label: int, number: int) -> int:
    return int((labels == label).nonzero()[0, 0])


def any_picture(labels: Tensor, label: int, number: int) -> int:
    return (number * 7919 + 13) % len(labels)
