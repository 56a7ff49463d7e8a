"""Sampling grids: the times at which a solver stops on its way from noise (1) to data (0)."""

import math

import torch
from torch import Tensor


def uniform_grid(steps: int) -> Tensor:
    """steps + 1 equally spaced times from 1 to 0, float32: (steps + 1,)."""
    if steps < 1:
        raise ValueError(f"steps is {steps}; sampling needs at least 1")
    return torch.linspace(1, 0, steps + 1)


def flux_mu(image_tokens: int) -> float:
    """FLUX.1's shift, linear in the number of image tokens: 0.5 at 256, 1.15 at 4096."""
    return 0.5 + (1.15 - 0.5) * (image_tokens - 256) / (4096 - 256)


def shift(t: Tensor, mu: float) -> Tensor:
    """t' = e^mu / (e^mu + (1/t - 1)): spends more of the steps near the noise for mu > 0.

    Esser et al. 2024, eq. 23 with e^mu = sqrt(m / n). Keeps 0 and 1 where they are.
    """
    s = math.exp(mu)
    return s * t / (1 + (s - 1) * t)  # the same fraction, with t = 0 allowed


def flux_grid(steps: int, image_tokens: int) -> Tensor:
    """The uniform grid bent by FLUX.1's resolution shift."""
    return shift(uniform_grid(steps), flux_mu(image_tokens))


def uniform_schedule(steps: int, image_tokens: int) -> Tensor:
    """The uniform grid, whatever the resolution: right for small pixel-space models."""
    return uniform_grid(steps)


# Each: (steps, image_tokens) -> (steps + 1,) times from 1 to 0.
SCHEDULES = {"uniform": uniform_schedule, "flux": flux_grid}
