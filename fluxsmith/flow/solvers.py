"""ODE solvers, and the grids of times along which they integrate dx/dt = velocity(x, t): from noise
at t = 1 to data at t = 0.

A solver knows nothing of guidance, prompts or networks. To add one, write a function that returns
its step, and a line in `SOLVERS` with its order and its cost. A schedule is a function, or a class
whose fields are its settings, and a line in `SCHEDULES`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from fluxsmith.flow.path import Velocity

# Called with (i, t, x) for the start, i = 0, and after every step. What it returns, if anything,
# takes the place of x: inpainting puts back what it keeps.
OnStep = Callable[[int, Tensor, Tensor], Tensor | None]

# Gives step i, counted from 0, of a stochastic solver its standard normal noise, of the shape of x.
Noise = Callable[[int], Tensor]


# (velocity, x, ts, on_step=None, noise=None) -> x at ts[-1], from x (b, c, h, w) at ts[0]; `ts` is
# (steps + 1,), on any device.
SolverFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Solver:
    """A solver with its order of convergence and what it costs."""

    function: SolverFunction
    order: int
    evaluations: Callable[[int], int]  # how often n steps ask for the velocity


# Step i of a solver, counted from 0: (i, x, t, dt) -> x at t + dt.
Step = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def stepping(make: Callable[[Velocity, Noise | None], Step]) -> SolverFunction:
    """Makes a solver of a function that returns its step. What one step keeps for the next lives in
    that function, so it is new for every call of the solver."""

    @wraps(make)
    def solve(
        velocity: Velocity,
        x: Tensor,
        ts: Tensor,
        on_step: OnStep | None = None,
        noise: Noise | None = None,
    ) -> Tensor:
        step = make(velocity, noise)
        x = _seen(on_step, 0, ts[0], x)
        for i, (t, t_next) in enumerate(pairwise(ts)):
            x = _seen(on_step, i + 1, t_next, step(i, x, t, t_next - t))
        return x

    return solve


@stepping
def euler(velocity: Velocity, noise: Noise | None) -> Step:
    """Order 1, one evaluation a step."""
    return lambda i, x, t, dt: x + dt * velocity(x, t)


@stepping
def heun(velocity: Velocity, noise: Noise | None) -> Step:
    """Heun's method (the explicit trapezoid): order 2, two evaluations a step.

    A step onto t = 0 stays Euler's, as in Karras et al. 2022, algorithm 1: training hardly ever
    visits t = 0, so a network's velocity there would spoil the picture.
    """

    def step(i: int, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        v = velocity(x, t)
        ahead, then = x + dt * v, t + dt
        return ahead if then == 0 else x + dt / 2 * (v + velocity(ahead, then))

    return step


@stepping
def midpoint(velocity: Velocity, noise: Noise | None) -> Step:
    """The explicit midpoint rule: order 2, two evaluations a step."""

    def step(i: int, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        half = dt / 2
        return x + dt * velocity(x + half * velocity(x, t), t + half)

    return step


@stepping
def adams2(velocity: Velocity, noise: Noise | None) -> Step:
    """Adams-Bashforth's two-step method: order 2, one evaluation a step; the first step is Euler's.

    The velocity is continued along the line through its last two values (Hairer, Nørsett & Wanner
    1993, "Solving Ordinary Differential Equations I", sec. III.5, for steps of unequal length).
    """
    before: tuple[Tensor, Tensor] | None = None  # the velocity and the length of the last step

    def step(i: int, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        nonlocal before
        v = velocity(x, t)
        slope = v if before is None else v + dt / (2 * before[1]) * (v - before[0])
        before = v, dt
        return x + dt * slope

    return step


SOLVERS: dict[str, Solver] = {
    "euler": Solver(euler, order=1, evaluations=lambda steps: steps),
    "heun": Solver(heun, order=2, evaluations=lambda steps: 2 * steps - 1),
    "midpoint": Solver(midpoint, order=2, evaluations=lambda steps: 2 * steps),
    "adams2": Solver(adams2, order=2, evaluations=lambda steps: steps),
}


def _seen(on_step: OnStep | None, i: int, t: Tensor, x: Tensor) -> Tensor:
    changed = on_step(i, t, x) if on_step is not None else None
    return x if changed is None else changed


def uniform_grid(steps: int) -> Tensor:
    """steps + 1 equally spaced times from 1 to 0, float32: (steps + 1,)."""
    if steps < 1:
        raise ValueError(f"steps is {steps}; sampling needs at least 1")
    return torch.linspace(1, 0, steps + 1)


def shift(t: Tensor, mu: float) -> Tensor:
    """t' = e^mu / (e^mu + (1/t - 1)): spends more of the steps near the noise for mu > 0.

    Esser et al. 2024, eq. 23 with e^mu = sqrt(m / n). Keeps 0 and 1 where they are.
    """
    s = math.exp(mu)
    return s * t / (1 + (s - 1) * t)  # the same fraction, with t = 0 allowed


def uniform_schedule(steps: int, image_tokens: int) -> Tensor:
    """The uniform grid, whatever the resolution: right for small pixel-space models."""
    return uniform_grid(steps)


@dataclass(frozen=True)
class Bent:
    """What the schedules that bend a grid share: where its last time before 0 is, and how the times
    lie between the first and that."""

    shift_terminal: Annotated[
        float, "The last time before 0, which the others are stretched for; 0: as it falls."
    ] = 0.0
    spacing: Annotated[
        Literal["shifted", "karras", "exponential"],
        "How times lie between the first and the last: as they are shifted, or by another rule.",
    ] = "shifted"

    def __post_init__(self) -> None:
        if not 0 <= self.shift_terminal < 1:
            raise ValueError(f"shift_terminal={self.shift_terminal}: must be from 0 to below 1")

    def spaced(self, grid: Tensor) -> Tensor:
        """The grid (steps + 1,) from one that is only shifted."""
        t = grid[:-1]
        if self.shift_terminal and len(t) > 1:
            t = 1 - (1 - t) * (1 - self.shift_terminal) / (1 - t[-1])
        along = torch.linspace(0, 1, len(t))
        if self.spacing == "karras":  # Karras et al. 2022, eq. 5 with rho = 7
            first, last = t[0] ** (1 / 7), t[-1] ** (1 / 7)
            t = (first + along * (last - first)) ** 7
        elif self.spacing == "exponential":
            t = torch.exp(t[0].log() + along * (t[-1].log() - t[0].log()))
        return torch.cat((t, grid[-1:]))


LARGEST_SHIFT = 10.0  # with e^20 all times but 0 are 1 in float32


@dataclass(frozen=True)
class ShiftedSchedule(Bent):
    """The uniform grid bent by one shift at every resolution."""

    shift: Annotated[float, "How far times move towards noise; 1 is uniform."] = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shift <= math.exp(LARGEST_SHIFT):
            raise ValueError(
                f"shift={self.shift}: must be above 0, and at most {math.exp(LARGEST_SHIFT):.0f}"
            )

    def __call__(self, steps: int, image_tokens: int) -> Tensor:
        return self.spaced(shift(uniform_grid(steps), math.log(self.shift)))


@dataclass(frozen=True)
class FluxSchedule(Bent):
    """The uniform grid bent by a shift linear in the number of image tokens, as FLUX.1 does."""

    base_shift: Annotated[float, "The shift mu at base_tokens."] = 0.5
    max_shift: Annotated[float, "The shift mu at max_tokens."] = 1.15
    base_tokens: Annotated[int, "Image tokens where the shift is base_shift."] = 256
    max_tokens: Annotated[int, "Image tokens where the shift is max_shift."] = 4096
    shift_type: Annotated[
        Literal["exponential", "linear"], "Whether times are shifted by e^mu or by mu itself."
    ] = "exponential"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.base_tokens < self.max_tokens:
            raise ValueError(
                f"base_tokens={self.base_tokens}: must be above 0 and below "
                f"max_tokens={self.max_tokens}"
            )
        for key in ("base_shift", "max_shift"):
            if not abs(value := getattr(self, key)) <= LARGEST_SHIFT:
                raise ValueError(
                    f"{key}={value}: must be from {-LARGEST_SHIFT:g} to {LARGEST_SHIFT:g}"
                )
        if self.shift_type == "linear" and not (self.base_shift > 0 and self.mu(1) > 0):
            raise ValueError(f"base_shift={self.base_shift}: a linear shift must be above 0")

    def mu(self, image_tokens: int) -> float:
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return self.base_shift + slope * (image_tokens - self.base_tokens)

    def __call__(self, steps: int, image_tokens: int) -> Tensor:
        """Raises a ValueError where a linear shift that falls has come to 0."""
        mu = self.mu(image_tokens)
        if self.shift_type == "linear":
            if mu <= 0:
                raise ValueError(
                    f"max_shift={self.max_shift}: at {image_tokens} image tokens the linear shift "
                    f"is {mu:.2f}, and it must be above 0; draw smaller, or make max_shift larger"
                )
            mu = math.log(mu)
        return self.spaced(shift(uniform_grid(steps), mu))


# Each: (steps, image_tokens) -> (steps + 1,) times from 1 to 0. A class makes one from its fields,
# which are keys of a config's sample section.
SCHEDULES: dict[str, Any] = {
    "uniform": uniform_schedule,
    "shifted": ShiftedSchedule,
    "flux": FluxSchedule,
}
