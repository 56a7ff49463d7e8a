"""Likelihoods of Gaussian data, whose velocity and density are known exactly."""

import math

import pytest
import torch
from evaluation_models import normal

from fluxsmith.data.images import to_uint8
from fluxsmith.evaluation.evaluators.likelihood import (
    bits_per_dimension,
    dequantise,
    log_likelihood,
)

MEAN, SD = 0.3, torch.tensor([0.2, 0.5, 1.0, 2.0]).double().view(1, 2, 2)
TURN = torch.linalg.qr(normal(4, 4))[0]


def gaussian_velocity(turn):
    """E[eps - x0 | x_t = x] of x0 = MEAN + turn (SD z)."""

    def velocity(x, t):
        along = ((x - (1 - t) * MEAN).flatten(1) @ turn).view_as(x)
        slope = (t - (1 - t) * SD**2) / ((1 - t) ** 2 * SD**2 + t**2)
        return ((slope * along).flatten(1) @ turn.T).view_as(x) - MEAN

    return velocity


def draws(count, turn, seed=1):
    z = normal(count, 1, 2, 2, seed=seed)
    return MEAN + ((SD * z).flatten(1) @ turn.T).view_as(z), z


def exact(z):
    return (-0.5 * z.square() - SD.log() - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


def test_independent_pixels_exactly():
    """A diagonal Jacobian leaves nothing to the probes: e' J e = tr J for every e of +-1."""
    x0, z = draws(6, torch.eye(4).double())
    velocity = gaussian_velocity(torch.eye(4).double())
    found = log_likelihood(velocity, x0, 0, range(6), steps=400, probes=2)
    torch.testing.assert_close(found, exact(z)[:, None].expand(6, 2), rtol=0, atol=2e-3)
    torch.testing.assert_close(found[:, 0], found[:, 1])


def test_second_order_in_the_step():
    x0, z = draws(6, torch.eye(4).double())
    velocity = gaussian_velocity(torch.eye(4).double())
    errors = [
        float((log_likelihood(velocity, x0, 0, range(6), steps, 1)[:, 0] - exact(z)).abs().mean())
        for steps in (100, 200)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)


def test_correlated_pixels_without_bias():
    """The probes' mean is the truth within 4 of its standard errors, and they do differ."""
    x0, z = draws(3, TURN)
    found = log_likelihood(gaussian_velocity(TURN), x0, 0, range(3), steps=100, probes=60)
    error = found.std(1) / 60**0.5
    assert bool((error > 1e-3).all())
    assert bool(((found.mean(1) - exact(z)).abs() < 4 * error + 5e-3).all())


def test_an_image_has_its_own_probes_whatever_its_batch():
    x0, _ = draws(4, TURN)
    velocity = gaussian_velocity(TURN)
    whole = log_likelihood(velocity, x0, 7, range(10, 14), steps=5)
    part = log_likelihood(velocity, x0[2:], 7, range(12, 14), steps=5)
    torch.testing.assert_close(whole[2:], part)
    other = log_likelihood(velocity, x0[2:], 8, range(12, 14), steps=5)
    assert not torch.allclose(part, other)


def test_dequantised_values_return_and_fill_their_intervals():
    images = torch.arange(256, dtype=torch.uint8).repeat(40).view(10, 1, 32, 32)
    x = dequantise(images, 0, range(10))
    assert torch.equal(to_uint8(x), images)
    offset = (x + 1) * 127.5 - images
    assert float(offset.min()) < -0.49
    assert float(offset.max()) > 0.49
    assert float(offset.mean()) == pytest.approx(0, abs=0.01)
    torch.testing.assert_close(dequantise(images[4:6], 0, range(4, 6)), x[4:6])


def test_uniform_grey_values_need_eight_bits():
    """The density of 256 equally likely dequantised values is 127.5/256 everywhere."""
    log_p = torch.full((3, 2), 12 * math.log(127.5 / 256))
    assert bits_per_dimension(log_p, 12)["bits_per_dimension"] == pytest.approx(8)


def test_the_mean_and_both_spreads():
    nats = torch.tensor([[-1.0, -3.0], [-5.0, -3.0]]).double()
    found = bits_per_dimension(nats, 2)
    unit = 2 * math.log(2)
    assert found["bits_per_dimension"] == pytest.approx(3 / unit + math.log2(127.5))
    assert found["stderr"] == pytest.approx(1 / unit)  # of 2 and 4: sd 2^0.5, over 2^0.5
    assert found["probe_spread"] == pytest.approx(2**0.5 / unit)
