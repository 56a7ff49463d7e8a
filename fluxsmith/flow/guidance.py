"""Guidance: each function makes one velocity closure out of others, so solvers never learn of it.

A scale of 1 means no guidance everywhere, and costs one evaluation.
"""

from collections.abc import Callable

from torch import Tensor

from fluxsmith.flow.path import Velocity, beside

ROUNDING = 1e-6  # of the float32 times of a grid

# Two velocities of the same x at the same t: the conditional one, then the other.
Velocities = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def guided(v_c: Tensor, v_u: Tensor, scale: float | Tensor) -> Tensor:
    """v = v_u + scale (v_c - v_u): Ho & Salimans 2022, eq. 6 with scale = 1 + w, on velocities, for
    one scale or (b,)."""
    if isinstance(scale, Tensor):
        scale = beside(scale, v_c)
    return v_u + scale * (v_c - v_u)


def classifier_free(
    conditional: Velocity, unconditional: Velocity, scale: float, both: Velocities | None = None
) -> Velocity:
    """The velocity guided by one scale. `both` gives the two together, as `Velocities`, however
    they are quicker to come by."""
    if scale == 1:
        return conditional
    if scale == 0:
        return unconditional

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return guided(*(both(x, t) if both else (conditional(x, t), unconditional(x, t))), scale)

    return velocity


def within_interval(inside: Velocity, conditional: Velocity, low: float, high: float) -> Velocity:
    """`inside` for low <= t <= high and `conditional`, one evaluation in place of two, outside.

    Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval", eq. 5, with t for sigma.
    `t` must be a scalar, as solvers pass it.
    """
    if low > high:
        raise ValueError(f"the guidance interval [{low}, {high}] is empty; the lower t comes first")
    if inside is conditional or (low <= 0 and high >= 1):
        return inside

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        on = low - ROUNDING <= float(t) <= high + ROUNDING
        return inside(x, t) if on else conditional(x, t)

    return velocity
