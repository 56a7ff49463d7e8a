"""Starting from a picture instead of pure noise, and redrawing only a part of it."""

from torch import Tensor

from fluxsmith.flow.path import Velocity, interpolate
from fluxsmith.flow.solvers import Noise, OnStep, SolverFunction


def shortened(ts: Tensor, strength: float) -> Tensor:
    """The last `strength` of the steps of `ts` (steps + 1,), rounded up to whole ones.

    Meng et al. 2022, "SDEdit", sec. 3: the picture is noised to ts[0] of what is left, and drawn
    anew from there. 1 leaves nothing of the picture.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is {strength}; it must lie above 0 and at most at 1")
    steps = len(ts) - 1
    first = int(steps - min(steps * strength, steps))
    return ts[first:]


def inpaint(
    solver: SolverFunction,
    velocity: Velocity,
    x0: Tensor,
    eps: Tensor,
    mask: Tensor,
    ts: Tensor,
    on_step: OnStep | None = None,
    noise: Noise | None = None,
) -> Tensor:
    """Draws where mask (b or 1, 1, h, w) is 1, and holds x0 (b, c, h, w) where it is 0.

    After every step the part to keep is put back, noised with eps to that step's time: Lugmayr et
    al. 2022, "RePaint", eq. 8, without its resampling.
    """

    def put_back(i: int, t: Tensor, x: Tensor) -> Tensor:
        if i > 0:
            x = mask * x + (1 - mask) * interpolate(x0, eps, t)
        changed = on_step(i, t, x) if on_step is not None else None
        return x if changed is None else changed

    return solver(velocity, interpolate(x0, eps, ts[0]), ts, put_back, noise)
