"""Solvers on a flow whose exact solution is known: Gaussian data under Gaussian noise."""

import math

import pytest
import torch

from fluxsmith.flow.solvers import SOLVERS, FluxSchedule, euler, shift, uniform_grid

MEAN, SD = 1.5, 0.3  # of the data
every_solver = pytest.mark.parametrize(
    "solver", [entry.function for entry in SOLVERS.values()], ids=SOLVERS
)


def spread(t):
    """The standard deviation of x_t = (1 - t) x0 + t eps."""
    return torch.sqrt((1 - t) ** 2 * SD**2 + t**2)


def gaussian_velocity(x, t):
    """E[eps - x0 | x_t = x], from the covariance of eps - x0 with x_t."""
    covariance = t - (1 - t) * SD**2
    return -MEAN + covariance / spread(t) ** 2 * (x - (1 - t) * MEAN)


def exact(z, t):
    """x_t of the flow through x_1 = z: the linear map between the marginals."""
    return (1 - t) * MEAN + spread(t) * z


def data(z):
    """The far end of the flow through z, the map of N(0, 1) to the data's distribution."""
    return MEAN + SD * z


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def bent_grid(steps):
    return shift(uniform_grid(steps), 0.8)


def test_the_exact_solution_solves_the_equation():
    """The oracle of this file, checked: d/dt exact = velocity(exact, t)."""
    z, t = noise(5, 1), torch.linspace(0, 1, 11).double().expand(5, 11).requires_grad_()
    x = exact(z, t)
    (slope,) = torch.autograd.grad(x.sum(), t)
    torch.testing.assert_close(slope, gaussian_velocity(x, t))


@pytest.mark.parametrize("grid", [uniform_grid, bent_grid], ids=["uniform", "bent"])
@pytest.mark.parametrize("name", SOLVERS)
def test_order_of_convergence(name, grid):
    """Halving the step divides the error by 2^order, whether steps are equally long or not.

    In warped time s, t = s^2: in plain time this flow is one on which the midpoint rule's leading
    error cancels (x_t^2 is quadratic in t) and its order is 3.
    """
    z, entry = noise(2, 1, 3, 3), SOLVERS[name]

    def error(steps):
        ts = grid(steps).double()
        x = entry.function(lambda x, s: 2 * s * gaussian_velocity(x, s**2), z, ts)
        return (x - data(z)).abs().max().item()

    assert math.log2(error(256) / error(512)) == pytest.approx(entry.order, abs=0.1)


@every_solver
def test_the_whole_path_ends_on_the_data(solver):
    z = noise(2, 1, 3, 3)
    x = solver(gaussian_velocity, z, uniform_grid(200).double())
    torch.testing.assert_close(x, data(z), rtol=0, atol=0.01 if solver is euler else 3e-4)


@every_solver
def test_a_straight_field_takes_one_step(solver):
    """x0 + t (eps - x0) has no curvature, so any grid, from one step up, ends on x0."""
    x0, eps = noise(2, 3, 1, 4, 4)
    for steps in (1, 2, 7):
        x = solver(lambda x, t: eps - x0, eps, uniform_grid(steps).double())
        torch.testing.assert_close(x, x0)


@every_solver
@pytest.mark.parametrize(
    "grid", [uniform_grid(7), FluxSchedule()(5, 1024), torch.tensor([0.9, 0.2])]
)
def test_on_step_sees_every_time_and_state(solver, grid):
    """At each of them the state is what the solver gives on the grid up to there."""
    grid, z = grid.double(), noise(1, 1, 2, 2)
    seen = []
    result = solver(gaussian_velocity, z, grid, on_step=lambda i, t, x: seen.append((i, t, x)))
    assert [i for i, _, _ in seen] == list(range(len(grid)))
    assert torch.equal(torch.stack([t for _, t, _ in seen]), grid)
    assert torch.equal(seen[0][2], z)
    assert torch.equal(seen[-1][2], result)
    for i, _, x in seen:
        assert torch.equal(x, solver(gaussian_velocity, z, grid[: i + 1]))


@every_solver
@pytest.mark.parametrize("steps", [1, 2, 3, 13, 50])
def test_any_number_of_steps_covers_the_whole_path(solver, steps):
    """dx/dt = 1 measures the length of the path travelled: -1, however it is cut."""
    x = solver(lambda x, t: torch.ones_like(x), torch.zeros(1, 1, 2, 2), uniform_grid(steps))
    torch.testing.assert_close(x, torch.full((1, 1, 2, 2), -1.0))


@every_solver
def test_backwards_along_the_path_gives_the_noise_again(solver):
    """A solver follows its grid, whichever way that runs."""
    z, ts = noise(3, 1, 2, 2), uniform_grid(200).double()
    x = solver(gaussian_velocity, data(z), ts.flip(0))
    torch.testing.assert_close(x, z, rtol=0, atol=0.05 if solver is euler else 1e-3)


@pytest.mark.parametrize(
    ("name", "count"), [("euler", 10), ("heun", 19), ("midpoint", 20), ("adams2", 10)]
)
def test_evaluations_and_the_times_they_are_made_at(name, count):
    """None of them at t = 0, which training hardly visits."""
    times = []

    def velocity(x, t):
        times.append(t.item())
        return -x

    SOLVERS[name].function(velocity, torch.ones(1, 1, 1, 1), uniform_grid(10))
    assert len(times) == SOLVERS[name].evaluations(10) == count
    assert min(times) > 0
    assert max(times) == 1


def test_adams2_is_exact_where_the_velocity_is_linear_in_time():
    """After its first step, which is Euler's and exact for a velocity that is 0 at the start."""
    ts = torch.tensor([1.0, 0.8, 0.5, 0.4, 0.0]).double()
    seen = []
    SOLVERS["adams2"].function(
        lambda x, t: torch.full_like(x, float(t)), noise(1, 1, 1, 1), ts,
        on_step=lambda i, t, x: seen.append(x.item()),
    )  # fmt: skip
    for i in range(2, len(ts)):  # d/dt x = t: x grows by (t_i^2 - t_1^2) / 2
        assert seen[i] - seen[1] == pytest.approx(float(ts[i] ** 2 - ts[1] ** 2) / 2)


@every_solver
def test_what_on_step_returns_takes_the_place_of_the_state(solver):
    x = solver(
        lambda x, t: torch.zeros_like(x), noise(1, 1, 2, 2), uniform_grid(4),
        on_step=lambda i, t, x: torch.full_like(x, i),
    )  # fmt: skip
    assert x.unique().tolist() == [4]
