"""Starting from a picture, and redrawing a part of it, on velocities whose solution is known."""

import pytest
import torch

from fluxsmith.flow.editing import inpaint, shortened
from fluxsmith.flow.path import interpolate
from fluxsmith.flow.solvers import adams2, euler, midpoint, uniform_grid

TARGET = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)


def towards_target(x, t):
    """The exact velocity where all data is TARGET: x_t = (1 - t) TARGET + t eps."""
    return (x - TARGET) / t


def drawn(shape=(2, 1, 4, 4), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("strength", "left"), [(1.0, 10), (0.95, 10), (0.5, 5), (0.41, 5), (0.1, 1), (0.01, 1)]
)
def test_strength_is_the_share_of_steps_that_is_left(strength, left):
    ts = uniform_grid(10)
    assert torch.equal(shortened(ts, strength), ts[10 - left :])


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.1, float("nan")])
def test_an_impossible_strength_is_named(strength):
    with pytest.raises(ValueError, match="strength is"):
        shortened(uniform_grid(4), strength)


@pytest.mark.parametrize("solver", [euler, midpoint, adams2])
def test_what_is_kept_is_kept_and_the_rest_is_drawn(solver):
    x0, eps = drawn(seed=1)[:1], drawn()
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    ts = uniform_grid(8).clamp(min=1e-6)
    x = inpaint(solver, towards_target, x0, eps, mask, ts)
    torch.testing.assert_close(x[..., 2:], x0.expand(2, -1, -1, -1)[..., 2:], atol=1e-4, rtol=0)
    torch.testing.assert_close(x[..., :2], TARGET.expand(2, -1, -1, -1)[..., :2], atol=1e-4, rtol=0)


def test_what_on_step_gives_takes_the_place_of_x():
    mask, ts = torch.ones(1, 1, 4, 4), uniform_grid(4)
    x = inpaint(euler, towards_target, drawn(), drawn(), mask, ts, lambda i, t, x: 0 * x + i)
    assert torch.equal(x, torch.full_like(x, 4))


@pytest.mark.parametrize("solver", [euler, adams2])
def test_a_mask_of_ones_is_the_solver_itself(solver):
    """With its state from step to step, where it has one."""
    x0, eps, ts = drawn(seed=1), drawn(), shortened(uniform_grid(5), 0.7)
    seen, expected_seen = [], []

    def velocity(x, t):
        return x.sin() + t

    x = inpaint(solver, velocity, x0, eps, torch.ones(1, 1, 4, 4), ts,
                on_step=lambda *step: seen.append(step))  # fmt: skip
    start = interpolate(x0, eps, ts[0])
    expected = solver(velocity, start, ts, on_step=lambda *step: expected_seen.append(step))
    torch.testing.assert_close(x, expected)
    assert [(i, float(t)) for i, t, _ in seen] == [(i, float(t)) for i, t, _ in expected_seen]
    for (_, _, one), (_, _, two) in zip(seen, expected_seen, strict=True):
        torch.testing.assert_close(one, two)
