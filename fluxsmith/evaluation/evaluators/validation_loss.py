"""The loss on held-out images at fixed times with fixed noise, so that two models can be compared:
training's own loss swings with the times that a batch happened to draw."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fluxsmith.data.images import to_unit
from fluxsmith.evaluation.evaluator import Evaluator, Figure, Found, Score, Section
from fluxsmith.evaluation.report import Chart, plots
from fluxsmith.evaluation.samples import Samples
from fluxsmith.evaluation.statistics import normal_interval
from fluxsmith.flow.baseline import linear_loss
from fluxsmith.flow.path import flow_matching_loss
from fluxsmith.flow.timesteps import stratified_grid
from fluxsmith.randomness import image_noise

TIMES = 8
# The first is the grid of MLPerf Training's FLUX.1 benchmark, which takes in t = 0.
GRIDS = {"i/8": 0.0, "(i+1/2)/8": 0.5}
MEANINGS = {
    "i/8": "Mean squared error of the velocity on held-out images at eight fixed t, 0 among them, "
    "as MLPerf's FLUX.1 benchmark averages it; lower is better, for models of the same data.",
    "(i+1/2)/8": "The same in the middle of each eighth, which gives no weight to t = 0, where the "
    "noise can't be told from the picture.",
}


class ValidationLoss(Evaluator):
    title = "Loss by timestep"
    runs = "always"
    least_test = 2
    given_pictures = True
    scores: ClassVar = {"validation_loss": Score(("grids", "(i+1/2)/8", "mean"), "lower")}
    curve = "validation_loss"

    @torch.no_grad()
    def measure(self, samples: Samples) -> Found:
        """The mean loss over each grid of times and the loss at each time, with standard errors
        over images, for the first test images with the first caption of each and noise of their
        own; and what the best linear prediction would have."""
        count = min(samples.settings.validation_images, len(samples.reference.test))
        grids: dict[str, Any] = {}
        with samples.sampler.evaluating():
            for name, offset in GRIDS.items():
                times = stratified_grid(TIMES, offset).tolist()
                loss_of = partial(losses_at, samples, times=times)
                batches = samples.measured(count, samples.at_once, loss_of)
                losses = torch.cat(batches, dim=1)  # (times, images)
                at = {f"{t:g}": _mean(loss) for t, loss in zip(times, losses, strict=True)}
                grids[name] = {**_mean(losses.mean(0)), "by_t": at}
            at_once = samples.at_once
            latents = samples.measured(count, at_once, lambda rows: _latents(samples, rows).cpu())
        times = sorted({float(t) for grid in grids.values() for t in grid["by_t"]})
        linear = linear_loss(torch.cat(latents).var(0), torch.tensor(times)).tolist()
        best = {f"{t:g}": loss for t, loss in zip(times, linear, strict=True)}
        return {"grids": grids, "linear": best, "images": count}

    def figures(self, found: Found) -> list[Figure]:
        return [
            Figure(f"Validation loss, t = {name}", loss.value, MEANINGS[name], loss.interval)
            for name, grid in found["grids"].items()
            for loss in [normal_interval(grid["mean"], grid["stderr"])]
        ]

    def section(self, found: Found, samples: Samples) -> Section:
        grids = found["grids"].values()
        at = {float(t): loss for grid in grids for t, loss in grid["by_t"].items()}
        by_t = {t: normal_interval(loss["mean"], loss["stderr"]) for t, loss in at.items()}
        images = f"{found['images']:,} held-out images"
        caption = (
            f"Mean squared error of the velocity, {images} (bars: 95%), and that of the best "
            f"prediction which is linear in each pixel of x_t."
        )
        best = {float(t): [loss] * 3 for t, loss in found["linear"].items()}
        lines: dict[str, Any] = {"model": by_t, "best linear prediction": best}
        yield Chart(self.title, lines, plots.TIME, "loss", caption, dress=plots.logarithmic)


def losses_at(
    samples: Samples, rows: range, times: list[float], captions: Sequence[str] | None = None
) -> Tensor:
    """(times, b): the loss of some images at every time, each image with one noise, and with its
    own caption unless others are given."""
    pipeline = samples.pipeline
    x0, (_, own) = _latents(samples, rows), samples.reference.test_batch(rows)
    eps = image_noise(pipeline.latent_shape, samples.settings.seed, rows).to(x0)
    velocity = partial(
        pipeline.velocity,
        cond=pipeline.encode_text(captions or own),
        image_cond=samples.image_condition(rows),
    )
    at = [torch.full((len(rows),), t, device=x0.device) for t in times]
    return torch.stack([flow_matching_loss(velocity, x0, eps, t).cpu() for t in at])


def _latents(samples: Samples, rows: range) -> Tensor:
    """Some test images as the flow sees them."""
    images, _ = samples.reference.test_batch(rows)
    return samples.pipeline.autoencoder.encode(to_unit(images).to(samples.pipeline.device))


def _mean(values: Tensor) -> dict[str, float]:
    return {"mean": float(values.mean()), "stderr": float(values.std() / len(values) ** 0.5)}
