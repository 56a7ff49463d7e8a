"""Whether captions go with their pictures, seen in the data alone: long before a network has
learned to read, and whatever its learning rate."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxsmith.device import to_device

LEAST, MOST = 4, 256  # pictures of a batch: for an unbiased estimate; beyond, they cost much
PIXELS = 32  # of a side, to which larger pictures are averaged


def hsic(a: Tensor, b: Tensor) -> Tensor:
    """The Hilbert-Schmidt independence criterion of two kernels (n, n), n >= 4, unbiased: (), of
    expectation 0 where they are of independent things (Song et al. 2012, eq. 4)."""
    n = len(a)
    a, b = a - a.diag().diag(), b - b.diag().diag()
    sums = a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a.sum(0) @ b.sum(0)) / (n - 2)
    return ((a * b).sum() + sums) / (n * (n - 3))


def words_in_common(captions: Sequence[str]) -> Tensor:
    """The cosine of every two captions' sets of words: (n, n)."""
    bags = [set(caption.split()) for caption in captions]
    column = {word: i for i, word in enumerate(sorted(set[str]().union(*bags)))}
    table = torch.zeros(len(bags), len(column))
    for row, bag in zip(table, bags, strict=True):
        row[[column[word] for word in bag]] = len(bag) ** -0.5
    return table @ table.T


class Alignment:
    """The centred kernel alignment of captions and pictures over many batches (Kornblith et al.
    2019, eq. 3, by sums of unbiased estimates): 0 where they are independent. Its kernels are the
    words that two captions have in common, and the product of two pictures.

    The sums are kept on the device; dropped captions do not count, but are counted.
    """

    def __init__(self, device: torch.device | str) -> None:
        # batches, the sum of the criterion and of its square, each kernel's with itself, and the
        # mean variance of a pixel
        self.sums = torch.zeros(6, device=device)
        self.seen = self.empty = 0  # captions

    @torch.no_grad()
    def add(self, images: Tensor, captions: Sequence[str]) -> None:
        """A batch: images (b, c, h, w) with their captions."""
        rows = [i for i, caption in enumerate(captions) if caption]
        self.seen += len(captions)
        self.empty += len(captions) - len(rows)
        if len(rows) < LEAST:
            return
        rows = rows[:MOST]
        small = min(images.shape[-2], PIXELS), min(images.shape[-1], PIXELS)
        x = images[to_device(torch.tensor(rows), images.device)]
        # Up to torch 2.10 pooling on MPS takes sizes that divide only.
        where = "cpu" if x.device.type == "mps" else x.device
        x = F.adaptive_avg_pool2d(x.to(where), small).flatten(1).to(images.device)
        variance, x = x.var(0).mean(), x - x.mean(0)  # the mean changes only what is rounded
        pictures = x @ x.T / x.shape[1]
        words = to_device(words_in_common([captions[i] for i in rows]), x.device)
        both = hsic(words, pictures)
        each = torch.ones_like(both), both, both.square(), hsic(words, words)
        found = torch.stack([*each, hsic(pictures, pictures), variance])
        self.sums += torch.where(found.isfinite().all(), found, 0)  # a bad picture counts nowhere

    def figures(self) -> tuple[float, float, float]:
        """The alignment, its standard error, and the pictures' spread, as a standard deviation;
        NaN where nothing can be said. Waits for the device."""
        n, both, square, words, pictures, variance = self.sums.tolist()
        if n < 2:
            return math.nan, math.nan, math.nan
        spread = (variance / n) ** 0.5
        if words <= 0 or pictures <= 0:
            return math.nan, math.nan, spread
        scale = (words * pictures) ** 0.5
        error = (max(0.0, square - both**2 / n) * n / (n - 1)) ** 0.5
        return both / scale, error / scale, spread

    def state_dict(self) -> dict[str, Any]:
        return {"alignment": self.sums.clone(), "captions": [self.seen, self.empty]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums.copy_(state["alignment"])
        self.seen, self.empty = state["captions"]
