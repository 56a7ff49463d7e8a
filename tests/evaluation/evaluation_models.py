"""What the evaluation's tests share: models made to be seen through, random draws, a data set."""

import torch
from torch import Tensor, nn

from fluxsmith import Pipeline
from fluxsmith.config.reading import build_config
from fluxsmith.data.images import to_unit
from fluxsmith.data.imageset import ImageSet
from fluxsmith.sampling.generate import Sampler

DIGITS = {
    "data": {"source": "digits", "image_size": 16, "resize": "stretch"},
    "text": {"width": 64, "hidden_size": 64},
    "model": {
        "patch_size": 4, "hidden_size": 64, "num_heads": 1, "depth": 1, "depth_single_blocks": 1,
    },
    "sample": {"steps": 3},
}  # fmt: skip


SEED = 1_000_003  # further apart than any two samples


class Shown(Sampler):
    """Draws by taking pictures from a set, in a way that a test decides."""

    def __init__(self, pictures: ImageSet, pick, name: str = "test") -> None:
        super().__init__(Pipeline.build(build_config(DIGITS, name)))
        self.pictures, self.pick = pictures, pick

    def generate(self, prompts, *, seed=0, first_index=0, on_step=None, **_) -> Tensor:
        labels = [
            next(i for i, ways in enumerate(self.pictures.captions) if prompt in ways)
            for prompt in prompts
        ]
        rows = [
            self.pick(self.pictures.labels, label, SEED * seed + first_index + i)
            for i, label in enumerate(labels)
        ]
        images = to_unit(self.pictures.images[torch.tensor(rows)])
        for step in range(4) if on_step else ():
            on_step(step, 1 - step / 3, step / 3 * images)
        return images


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


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covered(estimates, truth):
    """How many of the intervals hold the truth."""
    return sum(each.low <= truth <= each.high for each in estimates)


class Pixels(nn.Module):
    """Images (n, 3, 4, 4) -> (n, 48), as torchmetrics takes a feature extractor."""

    num_features = 48

    def forward(self, images):
        return images.flatten(1).float()
