"""How straight a model's trajectories are: on straight ones a single Euler step is exact."""

from typing import ClassVar

import torch
from torch import Tensor

from fluxsmith.evaluation.evaluator import Evaluator, Figure, Found, Score, Section
from fluxsmith.evaluation.report import Chart, plots
from fluxsmith.evaluation.samples import Samples
from fluxsmith.evaluation.statistics import Estimate, normal_interval
from fluxsmith.flow.path import Velocity
from fluxsmith.flow.solvers import midpoint, uniform_grid
from fluxsmith.randomness import image_noise

STEPS = 16


class Straightness(Evaluator):
    title = "Straightness"
    runs = "always"
    scores: ClassVar = {"straightness": Score(("value",), "lower")}
    curve = "straightness"

    @torch.no_grad()
    def measure(self, samples: Samples) -> Found:
        """0 is straight; along the guided velocity, with the samples' own prompts and noise."""
        pipeline, settings, sampler = samples.pipeline, samples.settings, samples.float32_sampler
        count = min(settings.trajectories, len(samples))

        def errors_of(rows: range) -> tuple[Tensor, Tensor, Tensor]:
            cond = pipeline.encode_text(samples.prompts[rows.start : rows.stop])
            noise = image_noise(pipeline.latent_shape, settings.seed, rows)
            velocity = sampler.guided_velocity(cond, settings.guidance)
            return path_errors(velocity, noise.to(pipeline.device), STEPS)

        with sampler.evaluating():
            batches = samples.measured(count, samples.at_once, errors_of, guided=True)
        errors, lengths, (times, *_) = zip(*batches, strict=True)
        overall, profile = straightness(torch.cat(errors, dim=1), torch.cat(lengths))
        return {
            "value": overall.value,
            "interval": overall.interval,
            "by_t": {f"{t:g}": bend for t, bend in zip(times.tolist(), profile, strict=True)},
            "trajectories": count,
        }

    def figures(self, found: Found) -> list[Figure]:
        meaning = (
            "How far trajectories bend on their way from noise to data: at 0 a single step is "
            "exact, and the smaller it is, the fewer steps are enough."
        )
        return [Figure("Straightness (0: straight)", found["value"], meaning, found["interval"])]

    def section(self, found: Found, samples: Samples) -> Section:
        by_t = {float(t): (bend,) for t, bend in found["by_t"].items()}
        caption = "Where trajectories bend: 0 is straight."
        yield Chart(self.title, {"": by_t}, plots.TIME, "bend", caption)


@torch.no_grad()
def path_errors(velocity: Velocity, noise: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Follows noise (b, c, h, w) from t = 1 to 0 in `steps` equal midpoint steps.

    Gives ||(x_1 - x_0) - v(x_t, t)||^2 (steps, b) at the middle t (steps,) of each step, where the
    midpoint rule calls the velocity anyway, and ||x_1 - x_0||^2 (b,); float64 on the CPU. One and
    the same v moves x and is measured, so what is found is bending, not the solver's error.
    """
    seen = []

    def recorded(x: Tensor, t: Tensor) -> Tensor:
        seen.append(velocity(x, t))
        return seen[-1]

    ts = uniform_grid(steps).to(noise)
    midpoint(recorded, noise, ts)
    # Each step calls at its start, then in its middle: (steps, b, d).
    middles = torch.stack(seen[1::2]).cpu().double().flatten(2)
    way = middles.mean(0)  # x_1 - x_0, (b, d)
    errors = (way - middles).square().sum(2)
    return errors, way.square().sum(1), (ts[:-1] + ts[1:]).cpu().double() / 2


def straightness(errors: Tensor, lengths: Tensor) -> tuple[Estimate, list[float]]:
    """S = int_0^1 E||(x_1 - x_0) - v(x_t, t)||^2 dt over E||x_1 - x_0||^2, and the same at each t.

    The measure S(Z) of Liu et al. 2022, "Flow Straight and Fast", here divided so that it has no
    unit. Takes what `path_errors` gave, batches joined along b: (steps, b), (b,). The interval
    covers the chance of the noise (delta method). NaN if nothing moved.
    """
    each, length = errors.mean(0), lengths.mean()  # (b,), ()
    value = each.mean() / length
    error = (each - value * lengths).std() / length / len(lengths) ** 0.5
    bends = (errors.mean(1) / length).tolist()
    return normal_interval(float(value), float(error), least=0.0), bends
