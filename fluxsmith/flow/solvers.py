"""ODE solvers: each integrates dx/dt = velocity(x, t) along the times `ts`, here from 1 to 0.

A solver is a free function of a velocity, a start and a grid; it knows nothing of guidance,
prompts or networks. `on_step(i, t, x)` is called with i = 0 at the start and after every step.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from fluxsmith.flow.path import Velocity

OnStep = Callable[[int, Tensor, Tensor], None]


class Solver(Protocol):
    def __call__(
        self, velocity: Velocity, x: Tensor, ts: Tensor, on_step: OnStep | None = None
    ) -> Tensor:
        """From x at ts[0] to x at ts[-1]. `ts` is (steps + 1,), on any device."""
        ...


def euler(velocity: Velocity, x: Tensor, ts: Tensor, on_step: OnStep | None = None) -> Tensor:
    """Order 1, one evaluation a step."""

    def step(x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        return x + dt * velocity(x, t)

    return _integrate(step, x, ts, on_step)


def heun(velocity: Velocity, x: Tensor, ts: Tensor, on_step: OnStep | None = None) -> Tensor:
    """Heun's method (the explicit trapezoid): order 2, two evaluations a step.

    A step onto t = 0 stays Euler's, as in Karras et al. 2022, algorithm 1: training hardly ever
    visits t = 0, so a network's velocity there would spoil the picture.
    """

    def step(x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        v = velocity(x, t)
        ahead, then = x + dt * v, t + dt
        return ahead if then == 0 else x + dt / 2 * (v + velocity(ahead, then))

    return _integrate(step, x, ts, on_step)


def midpoint(velocity: Velocity, x: Tensor, ts: Tensor, on_step: OnStep | None = None) -> Tensor:
    """The explicit midpoint rule: order 2, two evaluations a step."""

    def step(x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        half = dt / 2
        return x + dt * velocity(x + half * velocity(x, t), t + half)

    return _integrate(step, x, ts, on_step)


SOLVERS: dict[str, Solver] = {"euler": euler, "heun": heun, "midpoint": midpoint}


def evaluations(solver: str, steps: int) -> int:
    """How often a solver asks for the velocity on its way from t = 1 to 0."""
    return {"euler": steps, "heun": 2 * steps - 1, "midpoint": 2 * steps}[solver]


def _integrate(
    step: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, ts: Tensor, on_step: OnStep | None
) -> Tensor:
    if on_step is not None:
        on_step(0, ts[0], x)
    for i, (t, t_next) in enumerate(pairwise(ts), start=1):
        x = step(x, t, t_next - t)
        if on_step is not None:
            on_step(i, t_next, x)
    return x
