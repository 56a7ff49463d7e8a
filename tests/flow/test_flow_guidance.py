"""Guidance closures: their formulas, and how many evaluations each costs."""

import pytest
import torch

from fluxsmith.flow.guidance import classifier_free, embedded, within_interval

X, T = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)), torch.tensor(0.5)


class Field:
    """A velocity that counts its evaluations."""

    def __init__(self, function):
        self.function = function
        self.calls = 0

    def __call__(self, x, t):
        self.calls += 1
        return self.function(x, t)


@pytest.fixture
def conditional():
    return Field(lambda x, t: torch.sin(3 * x) + t)


@pytest.fixture
def unconditional():
    return Field(lambda x, t: x.square() - 2 * t)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.0, 7.5])
def test_guidance_extrapolates_from_unconditional_to_conditional(conditional, unconditional, scale):
    v = classifier_free(conditional, unconditional, scale)(X, T)
    by_hand = scale * (torch.sin(3 * X) + 0.5) + (1 - scale) * (X.square() - 1)
    torch.testing.assert_close(v, by_hand)
    assert (conditional.calls, unconditional.calls) == (1, 1)


def test_both_at_once_take_the_place_of_each(conditional, unconditional):
    both = Field(lambda x, t: (conditional.function(x, t), unconditional.function(x, t)))
    v = classifier_free(conditional, unconditional, 2.0, both)(X, T)
    assert (conditional.calls, unconditional.calls, both.calls) == (0, 0, 1)
    assert torch.equal(v, classifier_free(conditional, unconditional, 2.0)(X, T))


def test_scale_1_is_the_conditional_itself(conditional, unconditional):
    guided = classifier_free(conditional, unconditional, 1)
    assert guided is conditional
    guided(X, T)
    assert (conditional.calls, unconditional.calls) == (1, 0)


def test_scale_0_is_unconditional(conditional, unconditional):
    v = classifier_free(conditional, unconditional, 0)(X, T)
    assert torch.equal(v, unconditional(X, T))


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_inside_its_interval_guidance_holds(conditional, unconditional, t):
    guided = classifier_free(conditional, unconditional, 3.0)
    t = torch.tensor(t, dtype=torch.float64)
    assert torch.equal(within_interval(guided, conditional, 0.2, 0.8)(X, t), guided(X, t))


@pytest.mark.parametrize("t", [0.0, 0.19, 0.81, 1.0])
def test_outside_its_interval_only_the_conditional_is_evaluated(conditional, unconditional, t):
    guided = classifier_free(conditional, unconditional, 3.0)
    v = within_interval(guided, conditional, 0.2, 0.8)(X, torch.tensor(t))
    assert (conditional.calls, unconditional.calls) == (1, 0)
    assert torch.equal(v, conditional.function(X, torch.tensor(t)))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_an_interval_over_the_whole_path_changes_nothing(conditional, unconditional, t):
    guided = classifier_free(conditional, unconditional, 3.0)
    t = torch.tensor(t)
    assert torch.equal(within_interval(guided, conditional, 0, 1)(X, t), guided(X, t))


def test_without_guidance_an_interval_costs_nothing(conditional, unconditional):
    guided = classifier_free(conditional, unconditional, 1)
    within_interval(guided, conditional, 0.2, 0.8)(X, T)
    assert (conditional.calls, unconditional.calls) == (1, 0)


def test_embedded_guidance_hands_the_scale_to_the_network():
    velocity = embedded(lambda x, t, guidance: guidance * x + t, 3.5)
    torch.testing.assert_close(velocity(X, T), 3.5 * X + 0.5)
