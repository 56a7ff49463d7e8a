"""Densities of the training timestep, each given by its quantile function t = q(u), u in [0, 1].

Writing a density as a quantile function makes sampling one line, and lets a batch be stratified:
one value of u from each of b equal slices instead of b independent ones. The batch as a whole has
the same density and its loss a smaller variance; the low-discrepancy sampler of Kingma et al. 2021
("Variational Diffusion Models") does the same with a single shared offset. A density is one class
with `quantile`, whose fields are its settings, and a line in `DENSITIES`.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Tensor


class Density(Protocol):
    def quantile(self, u: Tensor) -> Tensor:
        """Maps u in [0, 1] to t in [0, 1], so that uniform u gives t its density."""
        ...


@dataclass(frozen=True)
class Uniform:
    """t ~ U(0, 1): plain rectified flow."""

    def quantile(self, u: Tensor) -> Tensor:
        return u


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) ~ N(mean, scale^2): Esser et al. 2024, eq. 19. FLUX-like training uses (0, 1)."""

    mean: Annotated[float, "Mean of logit(t); above 0 leans towards noise."] = 0.0
    scale: Annotated[float, "Standard deviation of logit(t)."] = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale={self.scale}: must be above 0")
        if not math.isfinite(self.mean):
            raise ValueError(f"mean={self.mean}: must be finite")

    def quantile(self, u: Tensor) -> Tensor:
        normal = torch.special.ndtri(u.cpu() if u.device.type == "mps" else u)  # MPS has no ndtri
        return torch.sigmoid(self.mean + self.scale * normal.to(u.device))


@dataclass(frozen=True)
class Mode:
    """Esser et al. 2024, eq. 20: heavier in the middle for scale > 0, at the ends for scale < 0.

    The quantile function is f(u) = 1 - u - scale (cos^2(pi u / 2) - 1 + u), which falls with u;
    it is taken at 1 - u so that it rises like the others. Monotone for -1 <= scale <= 2/(pi - 2).
    """

    scale: Annotated[float, "Above 0 heavier in the middle, below 0 at the ends."] = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise ValueError(f"scale={self.scale}: must be from -1 to 2 / (pi - 2) = 1.7519")

    def quantile(self, u: Tensor) -> Tensor:
        return u - self.scale * (torch.sin(math.pi / 2 * u).square() - u)


@dataclass(frozen=True)
class Shifted:
    """Uniform, bent towards the noise as sampling grids are for large images.

    t = s u / (1 + (s - 1) u): Esser et al. 2024, eq. 23, with s = sqrt(m / n) there; s = e^mu in
    the terms of `flow.solvers.shift`.
    """

    shift: Annotated[float, "How far the density leans towards noise; 1 is uniform."] = 3.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"shift={self.shift}: must be above 0")

    def quantile(self, u: Tensor) -> Tensor:
        return self.shift * u / (1 + (self.shift - 1) * u)


DENSITIES: dict[str, type[Density]] = {
    "uniform": Uniform,
    "logit_normal": LogitNormal,
    "mode": Mode,
    "shifted": Shifted,
}


def sample(density: Density, n: int, generator: torch.Generator, stratified: bool) -> Tensor:
    """n timesteps (n,), float32, on the generator's device.

    With `stratified`, the i-th one comes from the i-th of n equal slices of the density.
    """
    u = torch.rand(n, generator=generator, device=generator.device)
    if stratified:
        u = (torch.arange(n, device=generator.device) + u) / n
    # u = 0 has probability 2^-24 and maps to t = 0, where x_t carries no noise: harmless.
    return density.quantile(u)


def stratified_grid(n: int, offset: float = 0.5) -> Tensor:
    """t = (i + offset) / n for i = 0..n-1: fixed timesteps for a validation loss, (n,) float32.

    Offset 0 and n = 8 is the grid that MLPerf Training's FLUX.1 benchmark averages over.
    """
    return (torch.arange(n) + offset) / n
