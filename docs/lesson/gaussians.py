"""Data of which everything is known in closed form: a mixture of Gaussians."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fluxsmith.flow.path import beside


class Mixture:
    """Equal shares of Gaussians with these means (k, d) and one standard deviation."""

    def __init__(self, means: Sequence[Sequence[float]], sd: float) -> None:
        self.means = torch.tensor(means)  # (k, d)
        self.sd = sd

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Data points (n, d)."""
        which = torch.randint(len(self.means), (n,), generator=generator)
        spread = torch.randn(n, self.means.shape[1], generator=generator)
        return self.means[which] + self.sd * spread

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """The best velocity, E[eps - x0 | x_t = x], at x (n, d) and t, (n,) or a scalar."""
        t = beside(t, x)[..., None]  # (n, 1, 1) or a scalar
        away = x[:, None] - (1 - t) * self.means  # (n, k, d), from where each Gaussian is by now
        variance = (1 - t) ** 2 * self.sd**2 + t**2
        share = torch.softmax(-away.square().sum(-1, keepdim=True) / (2 * variance), dim=1)
        each = -self.means + (t - (1 - t) * self.sd**2) / variance * away
        return (share * each).sum(1)  # (n, d)
