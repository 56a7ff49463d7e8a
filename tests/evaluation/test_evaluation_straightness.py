"""Straightness of fields whose trajectories are known."""

import math

import pytest
import torch
from evaluation_models import covered, normal

from fluxsmith.evaluation.evaluators.straightness import path_errors, straightness


def turning(angle):
    """Trajectories are arcs of `angle` about the origin, at constant speed."""

    def velocity(x, t):
        return angle * torch.stack([-x[:, 1], x[:, 0]], 1)

    return velocity


def bend(velocity, noise, steps):
    """Over all times, and at each."""
    errors, lengths, _ = path_errors(velocity, noise, steps)
    return straightness(errors, lengths)


def test_constant_velocities_are_straight():
    errors, lengths, times = path_errors(lambda x, t: torch.ones_like(x), normal(5, 1, 2, 2), 7)
    assert straightness(errors, lengths)[0].value == pytest.approx(0, abs=1e-20)
    assert times.tolist() == pytest.approx([(2 * i + 1) / 14 for i in range(6, -1, -1)])


def test_a_straight_flow_with_a_varying_field_is_straight():
    """Scaling from the origin, x_t = (1 + t) z: v = x/(1 + t) varies over x and t, its paths
    don't bend."""
    assert bend(lambda x, t: x / (1 + t), normal(5, 1, 2, 2), 20)[0].value < 1e-5


@pytest.mark.parametrize("angle", [0.5, math.pi / 2, 3.0])
def test_an_arc_in_closed_form(angle):
    """Of radius 1: speed² - chord² over chord², with speed = angle and chord = 2 sin(angle/2)."""
    chord = 2 * math.sin(angle / 2)
    overall, profile = bend(turning(angle), normal(20, 2, 1, 1), 200)
    assert overall.value == pytest.approx((angle / chord) ** 2 - 1, rel=2e-3)
    assert overall.high - overall.low < 1e-6  # each arc is as bent as the next
    # Halfway the velocity is parallel to the chord: the profile has its least there.
    middle = profile[100]
    assert middle == pytest.approx(((angle - chord) / chord) ** 2, rel=0.02, abs=1e-5)
    assert middle < profile[0]
    assert sum(profile) / 200 == pytest.approx(overall.value)


def test_a_bent_path_in_time():
    """v = 1 + a cos(2 pi t): (x_1 - x_0) = 1, so S = a²/2, exactly by the midpoint rule."""

    def velocity(x, t):
        return torch.full_like(x, 1 + 0.3 * math.cos(2 * math.pi * float(t)))

    assert bend(velocity, normal(4, 1, 3, 3), 12)[0].value == pytest.approx(0.3**2 / 2, rel=1e-5)


def test_the_interval_covers_the_truth():
    """Images that go w long and bend by g w: S = E (g w)²/E w², in 90% to 99% of 200."""

    def velocity(x, t):
        w, g = x[:, :, 0], x[:, :, 1]  # carried along, unchanged
        sway = 2**0.5 * g * w * torch.cos(2 * math.pi * t)
        return torch.stack([0 * w, 0 * g, w + sway], 2)

    found = []
    for s in range(200):
        x = torch.zeros(100, 1, 3, 1, dtype=torch.float64)
        x[:, 0, 0] = 2 + normal(100, 1, seed=s)
        x[:, 0, 1] = 0.5 * normal(100, 1, seed=s + 9999)
        found.append(bend(velocity, x, 4)[0])
    assert 176 <= covered(found, 0.25) <= 198


def test_nothing_moves():
    """As with a new model: there is no number, and no error."""
    assert math.isnan(bend(lambda x, t: 0 * x, normal(4, 1, 1, 1), 3)[0].value)
