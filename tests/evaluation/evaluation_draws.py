"""What the tests of the evaluation's numerics share: draws, and pixels as features."""

import torch
from torch import nn


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Pixels(nn.Module):
    """Images (n, 3, 4, 4) -> (n, 48), as torchmetrics takes a feature extractor."""

    num_features = 48

    def forward(self, images):
        return images.flatten(1).float()
