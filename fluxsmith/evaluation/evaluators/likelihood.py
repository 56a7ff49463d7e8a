"""Bits per dimension of test images: how short a code the model gives to them, by the flow's change
of volume.

For models of pixels. A model of latents gives the likelihood of latents, which says nothing about
images.
"""

import math
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from fluxsmith.data.images import to_unit
from fluxsmith.errors import UserError
from fluxsmith.evaluation.evaluator import Evaluator, Figure, Found, Score, Section
from fluxsmith.evaluation.report import number
from fluxsmith.evaluation.samples import Samples
from fluxsmith.evaluation.statistics import normal_interval
from fluxsmith.flow.path import Velocity
from fluxsmith.flow.solvers import uniform_grid
from fluxsmith.randomness import generator

BATCH = 50
STEPS = 50
PROBES = 2
LEVELS = 127.5  # grey values per unit of x: 0..255 becomes [-1, 1]


class Likelihood(Evaluator):
    title = "Likelihood"
    runs = "all"
    least_test = 2
    scores: ClassVar = {"bits_per_dimension": Score(("bits_per_dimension",), "lower")}

    def measure(self, samples: Samples) -> Found:
        """Of the first test images with their first captions, without guidance; an upper bound of
        the bits of the images, with the error over images and the estimator's own spread."""
        pipeline, settings, sampler = samples.pipeline, samples.settings, samples.float32_sampler
        if pipeline.autoencoder.digest is not None:
            raise UserError("likelihood: that of latents says nothing about images; leave it out")
        count = min(settings.likelihood_images, len(samples.reference.test))

        def nats_of(rows: range) -> Tensor:
            images, captions = samples.reference.test_batch(rows)
            x0 = dequantise(images, settings.seed, rows).to(pipeline.device)
            with torch.no_grad():
                velocity = sampler.guided_velocity(pipeline.encode_text(captions), 1.0)
            return log_likelihood(velocity, x0, settings.seed, rows, STEPS, PROBES)

        with sampler.evaluating():
            nats = torch.cat(samples.measured(count, min(BATCH, samples.at_once), nats_of))
        bits = bits_per_dimension(nats, samples.reference.test.images[0].numel())
        return {**bits, "images": count, "steps": STEPS, "probes": PROBES}

    def figures(self, found: Found) -> list[Figure]:
        meaning = (
            "Upper bound of the code length that the model gives to a pixel value of held-out "
            "images, by the probability-flow ODE; lower is better."
        )
        bits = normal_interval(found["bits_per_dimension"], found["stderr"])
        return [Figure("Bits per dimension", bits.value, meaning, bits.interval)]

    def section(self, found: Found, samples: Samples) -> Section:
        spread = number(found["probe_spread"], found["bits_per_dimension"])
        yield (
            f"Of {found['images']} held-out images, by {found['steps']} midpoint steps with "
            f"{found['probes']} of Hutchinson's probes an image, whose standard deviation for one "
            f"image is {spread}."
        )


def dequantise(images: Tensor, seed: int, indices: range) -> Tensor:
    """uint8 (b, c, h, w) -> x = (value + u - 1/2)/127.5 - 1 with u uniform in [0, 1).

    A grey value becomes an interval of width 1/127.5 around where `to_unit` puts it. Then
    E_u log p(x) - log 127.5 a dimension is at most log P(value) (Theis et al. 2016, section 3.1),
    so the bits of x plus log2 127.5 = 6.99 are an upper bound of the bits of the image. One
    generator an image.
    """
    draws = [generator(seed, "dequantise", i) for i in indices]
    noise = torch.stack([torch.rand(images.shape[1:], generator=draw) for draw in draws])
    return to_unit(images) + (noise - 0.5) / LEVELS


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


def bits_per_dimension(log_likelihoods: Tensor, dimensions: int) -> dict[str, float]:
    """Of dequantised images: -log2 p(x)/dimensions + log2 127.5, from nats (n, probes), with the
    standard error over images and the standard deviation of one image's figure over probes."""
    bits = -log_likelihoods / (dimensions * math.log(2)) + math.log2(LEVELS)  # (n, probes)
    each = bits.mean(1)
    return {
        "bits_per_dimension": float(each.mean()),
        "stderr": float(each.std()) / len(each) ** 0.5,
        "probe_spread": float(bits.var(1).mean().sqrt()),
    }


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
        signs = [torch.randint(2, x.shape[1:], generator=of_image[p]) for of_image in draws]
        e = (torch.stack(signs) * 2 - 1).to(v)
        (back,) = torch.autograd.grad(v, at, e, retain_graph=p + 1 < probes)
        found.append((back * e).flatten(1).cpu().double().sum(1))
    return v.detach(), torch.stack(found, 1)
