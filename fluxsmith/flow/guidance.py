"""Guidance: each function makes one velocity closure out of others, so solvers never learn of it.

A scale of 1 means no guidance everywhere, and costs one evaluation.
"""

from collections.abc import Callable

from torch import Tensor

from fluxsmith.flow.path import Velocity

# Two velocities of the same x at the same t: the conditional one, then the other.
Velocities = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def classifier_free(
    conditional: Velocity, unconditional: Velocity, scale: float, both: Velocities | None = None
) -> Velocity:
    """v = v_u + scale (v_c - v_u): Ho & Salimans 2022, eq. 6 with scale = 1 + w, on velocities.

    `both` gives the two together, as `Velocities`, however they are quicker to come by.
    """
    if scale == 1:
        return conditional
    if scale == 0:
        return unconditional

    def guided(x: Tensor, t: Tensor) -> Tensor:
        v_c, v_u = both(x, t) if both else (conditional(x, t), unconditional(x, t))
        return v_u + scale * (v_c - v_u)

    return guided


def within_interval(guided: Velocity, conditional: Velocity, low: float, high: float) -> Velocity:
    """`guided` for low <= t <= high and `conditional`, one evaluation in place of two, outside.

    Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval", eq. 5, with t for sigma.
    `t` must be a scalar, as solvers pass it.
    """
    if low > high:
        raise ValueError(f"the guidance interval [{low}, {high}] is empty; the lower t comes first")
    if guided is conditional or (low <= 0 and high >= 1):
        return guided

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        inside = low <= float(t) <= high
        return guided(x, t) if inside else conditional(x, t)

    return velocity


def embedded(velocity: Callable[[Tensor, Tensor, float], Tensor], scale: float) -> Velocity:
    """The scale as an input of a guidance-distilled network, such as FLUX.1 dev: one evaluation.

    Meng et al. 2023, "On Distillation of Guided Diffusion Models", sec. 3.1.
    """
    return lambda x, t: velocity(x, t, scale)
