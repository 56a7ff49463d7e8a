"""Bits per dimension: how short a code the model gives to images, by the flow's change of volume.

For models of pixels. A model of latents gives the likelihood of latents, which says nothing about
images.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fluxsmith.data.images import to_unit
from fluxsmith.flow.path import Velocity
from fluxsmith.flow.schedule import uniform_grid
from fluxsmith.randomness import generator

LEVELS = 127.5  # grey values per unit of x: 0..255 becomes [-1, 1]


@dataclass(frozen=True)
class BitsPerDimension:
    mean: float
    standard_error: float  # over images, the estimator's chance included
    probe_spread: float  # standard deviation of one image's figure over probes: the estimator's own
    images: int


def dequantise(images: Tensor, seed: int, indices: range) -> Tensor:
    """uint8 (b, c, h, w) -> x = (value + u - 1/2)/127.5 - 1 with u uniform in [0, 1).

    A grey value becomes an interval of width 1/127.5 around where `to_unit` puts it. Then
    E_u log p(x) - log 127.5 a dimension is at most log P(value) (Theis et al. 2016, section 3.1),
    so the bits of x plus log2 127.5 = 6.99 are an upper bound of the bits of the image. One
    generator an image.
    """
    noise = [
        torch.rand(images.shape[1:], generator=generator(seed, "dequantise", i)) for i in indices
    ]
    return to_unit(images) + (torch.stack(noise).to(images.device) - 0.5) / LEVELS


def log_likelihood(
    velocity: Velocity, x0: Tensor, seed: int, indices: range, steps: int = 50, probes: int = 2
) -> Tensor:
    """log p_0(x0) in nats for images (b, c, h, w), from `probes` estimates each: (b, probes).

    log p_0(x_0) = log N(x_1; 0, I) + int_0^1 div v(x_t, t) dt along the flow from data to noise:
    Chen et al. 2018, eq. 8, with the trace by Hutchinson's estimator e' (dv/dx) e, Grathwohl et al.
    2019, section 3.1, and Song et al. 2021, eq. 39 and 40. e is +-1, new at each step, drawn for
    image `indices[i]` at its own address. Midpoint steps, two calls and `probes` backward passes
    each.
    """
    draws = [[generator(seed, "probe", i, p) for p in range(probes)] for i in indices]
    x, ts = x0, uniform_grid(steps).flip(0).to(x0)  # 0 to 1
    change = torch.zeros(len(x0), probes, dtype=torch.float64)
    for t, after in pairwise(ts):
        dt = after - t
        with torch.no_grad():
            middle = x + dt / 2 * velocity(x, t)
        v, divergence = _divergence(velocity, middle, t + dt / 2, draws)
        x = x + dt * v
        change += float(dt) * divergence
    prior = -0.5 * (x.cpu().double().square() + math.log(2 * math.pi)).flatten(1).sum(1)
    return prior[:, None] + change


def bits_per_dimension(log_likelihoods: Tensor, dimensions: int) -> BitsPerDimension:
    """Of dequantised images: -log2 p(x)/dimensions + log2 127.5, from nats (n, probes).

    ValueError below two images or two probes, which leave no spread to tell.
    """
    if log_likelihoods.ndim != 2 or min(log_likelihoods.shape) < 2:
        raise ValueError(
            f"log-likelihoods of shape {tuple(log_likelihoods.shape)}; two images and two probes "
            "or more are needed"
        )
    bits = -log_likelihoods / (dimensions * math.log(2)) + math.log2(LEVELS)  # (n, probes)
    each = bits.mean(1)
    return BitsPerDimension(
        float(each.mean()),
        float(each.std()) / len(each) ** 0.5,
        float(bits.var(1).mean().sqrt()),
        len(each),
    )


def _divergence(
    velocity: Velocity, x: Tensor, t: Tensor, draws: list[list[torch.Generator]]
) -> tuple[Tensor, Tensor]:
    """v (b, c, h, w) and e' (dv/dx) e for each probe, (b, probes)."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        v = velocity(at, t)
    probes = len(draws[0])
    found = []
    for p in range(probes):
        e = torch.stack([_signs(x.shape[1:], of_image[p]) for of_image in draws]).to(v)
        (back,) = torch.autograd.grad(v, at, e, retain_graph=p + 1 < probes)
        found.append((back * e).flatten(1).cpu().double().sum(1))
    return v.detach(), torch.stack(found, 1)


def _signs(shape: torch.Size, draw: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=draw) * 2 - 1
