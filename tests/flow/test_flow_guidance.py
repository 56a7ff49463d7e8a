"""Guidance closures: their formulas, and what is not evaluated."""

import pytest
import torch

from fluxsmith.flow.guidance import classifier_free, within_interval

X, T = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)), torch.tensor(0.5)


def conditional(x, t):
    return torch.sin(3 * x) + t


def unconditional(x, t):
    return x.square() - 2 * t


def never(x, t):
    pytest.fail("evaluated without need")


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 7.5])
def test_guidance_extrapolates_from_unconditional_to_conditional(scale):
    v = classifier_free(conditional, unconditional, scale)(X, T)
    by_hand = scale * (torch.sin(3 * X) + 0.5) + (1 - scale) * (X.square() - 1)
    torch.testing.assert_close(v, by_hand)


def test_scales_1_and_0_evaluate_one_velocity():
    assert classifier_free(conditional, never, 1) is conditional
    assert classifier_free(never, unconditional, 0) is unconditional


def test_both_at_once_take_the_place_of_each():
    v = classifier_free(never, never, 2.0, lambda x, t: (conditional(x, t), unconditional(x, t)))
    assert torch.equal(v(X, T), classifier_free(conditional, unconditional, 2.0)(X, T))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [0.0, 0.19, 0.2, 0.5, 0.8, 0.81, 1.0])
def test_guidance_holds_inside_its_interval_and_is_not_evaluated_outside(t, dtype):
    """At its ends too, whose float32 may lie a little outside."""
    inside = 0.2 <= t <= 0.8
    guided = classifier_free(conditional, unconditional if inside else never, 3.0)
    v = within_interval(guided, never if inside else conditional, 0.2, 0.8)
    t = torch.tensor(t, dtype=dtype)
    assert torch.equal(v(X, t), (guided if inside else conditional)(X, t))


def test_an_interval_over_the_whole_path_and_one_without_guidance_change_nothing():
    guided = classifier_free(conditional, unconditional, 3.0)
    assert within_interval(guided, conditional, 0, 1) is guided
    assert within_interval(conditional, conditional, 0.2, 0.8) is conditional
