"""The best linear prediction of the velocity, against least squares on samples."""

import pytest
import torch

from fluxsmith.flow.baseline import linear_loss
from fluxsmith.flow.path import interpolate, velocity_target


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_no_line_through_samples_is_closer(t):
    draw = torch.Generator().manual_seed(0)
    deviation = torch.tensor([0.2, 1.0, 3.0])
    x0 = 0.7 + deviation * torch.randn(100_000, 3, generator=draw)
    eps = torch.randn(x0.shape, generator=draw)
    x_t, v = interpolate(x0, eps, torch.tensor(t)), velocity_target(x0, eps)
    errors = []
    for pixel in range(3):
        known = torch.stack([x_t[:, pixel], torch.ones(len(x0))], dim=1)
        line = torch.linalg.lstsq(known, v[:, pixel, None]).solution
        errors.append((v[:, pixel, None] - known @ line).square().mean())
    found = linear_loss(deviation.square().view(3, 1, 1), torch.tensor([t]))
    torch.testing.assert_close(found[0], torch.stack(errors).mean(), rtol=0.02, atol=0)


def test_at_the_ends_and_where_a_pixel_never_changes():
    variance = torch.tensor([0.25, 0.0]).view(1, 1, 2)
    found = linear_loss(variance, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.4, 0.125]))
