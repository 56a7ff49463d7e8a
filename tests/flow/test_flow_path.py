"""The straight path: its ends, its inverses, and the loss of a velocity along it."""

import itertools

import pytest
import torch

from fluxsmith.flow.path import (
    eps_from_velocity,
    flow_matching_loss,
    interpolate,
    posterior_mean,
    velocity_from_x0,
    velocity_target,
    x0_from_velocity,
)

SHAPES = [(3, 1, 4, 5), (4, 2, 3, 4), (5, 5, 5, 5)]  # the last two: b = w, where () and (b,) blur


@pytest.fixture(params=SHAPES, ids=str)
def sample(request):
    """Data, noise and one time per image: (b, c, h, w), (b, c, h, w), (b,)."""
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, *request.param, generator=g).double()
    return x0, eps, torch.rand(request.param[0], generator=g).double()


def test_path_runs_from_data_at_0_to_noise_at_1(sample):
    x0, eps, t = sample
    assert torch.equal(interpolate(x0, eps, torch.zeros_like(t)), x0)
    assert torch.equal(interpolate(x0, eps, torch.ones_like(t)), eps)
    assert torch.equal(interpolate(x0, eps, torch.tensor(0.0)), x0)
    assert torch.equal(interpolate(x0, eps, torch.tensor(1.0)), eps)


def test_each_image_is_mixed_by_its_own_time(sample):
    x0, eps, t = sample
    x_t = interpolate(x0, eps, t)
    for i in range(len(t)):
        torch.testing.assert_close(x_t[i], (1 - t[i].item()) * x0[i] + t[i].item() * eps[i])


def test_velocity_is_the_slope_of_the_path(sample):
    """Between any two times, since the path is straight."""
    x0, eps, t = sample
    rise = interpolate(x0, eps, t / 2 + 0.5) - interpolate(x0, eps, t / 2)
    torch.testing.assert_close(rise / 0.5, velocity_target(x0, eps))


def test_data_and_noise_come_back_from_the_velocity(sample):
    x0, eps, t = sample
    x_t, v = interpolate(x0, eps, t), velocity_target(x0, eps)
    torch.testing.assert_close(x0_from_velocity(x_t, v, t), x0)
    torch.testing.assert_close(eps_from_velocity(x_t, v, t), eps)


def test_a_velocity_comes_back_from_the_data_it_leads_to(sample):
    """Where t is at least 0.05, below which the division stops growing."""
    x0, eps, t = sample
    t = 0.05 + 0.95 * t
    x_t, v = interpolate(x0, eps, t), velocity_target(x0, eps)
    torch.testing.assert_close(velocity_from_x0(x_t, x0, t), v)
    low = torch.zeros_like(t)
    torch.testing.assert_close(velocity_from_x0(x_t, x_t - 0.05 * v, low), v)


@pytest.mark.parametrize("shape", [(1,), (4,), (3, 1), (3, 1, 1, 1)])
def test_a_time_of_the_wrong_shape_is_refused(shape):
    x = torch.zeros(3, 1, 4, 4)
    for function in (interpolate, x0_from_velocity, eps_from_velocity):
        with pytest.raises(ValueError, match="batch of 3"):
            function(x, x, torch.zeros(shape))


def test_loss_is_the_mean_squared_error_of_each_image(sample):
    x0, eps, t = sample
    loss = flow_matching_loss(lambda x, t: x.sin() + t[:, None, None, None], x0, eps, t)
    assert loss.shape == t.shape
    assert loss.dtype == torch.float32
    for i in range(len(t)):
        x_t = (1 - t[i]) * x0[i] + t[i] * eps[i]
        by_hand = ((x_t.sin() + t[i] - (eps[i] - x0[i])) ** 2).mean()
        torch.testing.assert_close(loss[i], by_hand.float())


def test_the_true_velocity_has_no_loss(sample):
    x0, eps, t = sample
    assert torch.equal(flow_matching_loss(lambda x, t: eps - x0, x0, eps, t), torch.zeros(len(t)))


def test_loss_of_a_half_precision_velocity_is_float32():
    x = torch.randn(2, 1, 4, 4)
    assert (
        flow_matching_loss(lambda x, t: x.bfloat16(), x, -x, torch.rand(2)).dtype == torch.float32
    )


def test_of_two_pictures_the_posterior_is_logistic():
    """Its log odds are (|x_t - (1 - t) x1|^2 - |x_t - (1 - t) x0|^2) / 2t^2."""
    g = torch.Generator().manual_seed(0)
    x0, eps, other = torch.randn(3, 4, 2, 3, 3, generator=g).double()
    t = torch.tensor([0.3, 0.6, 0.9, 1.0]).double()
    x_t = interpolate(x0, eps, t)
    for i in range(4):
        away = [(x_t[i] - (1 - t[i]) * x[i]).square().sum() for x in (x0, other)]
        share = torch.sigmoid((away[1] - away[0]) / (2 * t[i] ** 2))
        found = posterior_mean(x0[i : i + 1], eps[i : i + 1], t[i : i + 1], other[i : i + 1])
        torch.testing.assert_close(found[0], share * x0[i] + (1 - share) * other[i])


def test_without_noise_only_the_picture_itself_can_have_been():
    x0, eps, others = torch.randn(3, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(posterior_mean(x0, eps, torch.zeros(5), others), x0)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_posterior_means_have_the_expectation_of_the_data_and_less_variance(n):
    """Given x_t, over all ways to draw x0 and n others from three pictures."""
    pictures, t = torch.tensor([-1.0, 0.2, 1.5]).double(), torch.tensor([0.6]).double()
    for x_t in (-0.8, 0.0, 0.4):
        chances, own, means = [], [], []
        for drawn in itertools.product(pictures, repeat=n + 1):
            x0, *others = (x.view(1, 1, 1, 1) for x in drawn)
            eps = (x_t - (1 - t) * x0) / t
            chances.append((-eps.square() / 2).exp().item())
            own.append(x0.item())
            means.append(posterior_mean(x0, eps, t, torch.cat(others)).item())
        chance, own, means = (torch.tensor(x).double() for x in (chances, own, means))
        chance /= chance.sum()
        expected = chance @ own
        torch.testing.assert_close(chance @ means, expected)
        assert chance @ (means - expected) ** 2 < 0.9 * chance @ (own - expected) ** 2
