"""How straight a model's trajectories are: on straight ones a single Euler step is exact."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fluxsmith.evaluation.statistics import Estimate, normal_quantile
from fluxsmith.flow.path import Velocity
from fluxsmith.flow.schedule import uniform_grid
from fluxsmith.flow.solvers import midpoint


@dataclass(frozen=True)
class Straightness:
    overall: Estimate  # 0: straight; 1: as much detour as way
    profile: list[tuple[float, float]]  # (t, the same at t), from noise to data


@torch.no_grad()
def path_errors(velocity: Velocity, noise: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Follows noise (b, c, h, w) from t = 1 to 0 in `steps` equal midpoint steps.

    Gives ||(x_1 - x_0) - v(x_t, t)||^2 (steps, b) at the middle t (steps,) of each step, where the
    midpoint rule calls the velocity anyway, and ||x_1 - x_0||^2 (b,); float64 on the CPU. One and
    the same v moves x and is measured, so what is found is bending, not the solver's error.
    """
    seen: list[tuple[float, Tensor]] = []

    def recorded(x: Tensor, t: Tensor) -> Tensor:
        v = velocity(x, t)
        seen.append((float(t), v.cpu().double().flatten(1)))
        return v

    ts = uniform_grid(steps).to(noise)
    midpoint(recorded, noise, ts)
    middles = seen[1::2]  # each step calls at its start, then in its middle
    way = torch.stack([v for _, v in middles]).mean(0)  # x_1 - x_0, (b, d)
    errors = torch.stack([(way - v).square().sum(1) for _, v in middles])
    return errors, way.square().sum(1), torch.tensor([t for t, _ in middles], dtype=torch.float64)


def straightness(
    errors: Tensor, lengths: Tensor, times: Tensor, level: float = 0.95
) -> Straightness:
    """S = int_0^1 E||(x_1 - x_0) - v(x_t, t)||^2 dt over E||x_1 - x_0||^2, with its interval.

    The measure S(Z) of Liu et al. 2022, "Flow Straight and Fast", here divided so that it has no
    unit. Takes what `path_errors` gave, batches joined along b: (steps, b), (b,),
    (steps,). The interval covers the chance of the noise (delta method). ValueError if nothing
    moved or b is below two.
    """
    length = float(lengths.mean())
    if len(lengths) < 2 or length == 0:
        raise ValueError("straightness needs two trajectories or more that end elsewhere")
    each = errors.mean(0)  # (b,)
    value = float(each.mean()) / length
    error = float((each - value * lengths).std()) / length / len(lengths) ** 0.5
    margin = normal_quantile(level) * error
    profile = (errors.mean(1) / length).tolist()
    return Straightness(
        Estimate(value, max(0.0, value - margin), value + margin),
        list(zip(times.tolist(), profile, strict=True)),
    )
