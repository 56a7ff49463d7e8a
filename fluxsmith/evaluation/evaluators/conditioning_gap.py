"""How much the text is worth to the model: the loss on held-out images with another one's caption
less that with their own. It tells a model that ignores its text, which the loss alone does not."""

from typing import ClassVar

import torch
from torch import Tensor

from fluxsmith.data.captions import exchanged
from fluxsmith.errors import UserError
from fluxsmith.evaluation.evaluator import Evaluator, Figure, Found, Score, Section
from fluxsmith.evaluation.evaluators.validation_loss import losses_at
from fluxsmith.evaluation.report import Chart, plots
from fluxsmith.evaluation.samples import Samples, in_batches
from fluxsmith.evaluation.statistics import normal_interval
from fluxsmith.flow.timesteps import stratified_grid

EXCHANGED = 100  # images that exchange their captions
TIMES = 4


class ConditioningGap(Evaluator):
    title = "Conditioning gap by timestep"
    runs = "always"
    scores: ClassVar = {"conditioning_gap": Score(("mean",), "higher")}
    curve = "conditioning_gap"
    least_test = 2  # each with the other's caption
    given_pictures = True

    @torch.no_grad()
    def measure(self, samples: Samples) -> Found:
        """The mean gap and that at each time, with standard errors over images; each image has the
        same noise with both captions, and those that can get no other caption are left out."""
        count = min(samples.settings.validation_images, len(samples.reference.test))
        times = stratified_grid(TIMES).tolist()

        groups = [samples.reference.test_batch(rows)[1] for rows in in_batches(count, EXCHANGED)]
        own = [caption for group in groups for caption in group]
        others = [caption for group in groups for caption in exchanged(group)]
        differ = torch.tensor([one != other for one, other in zip(own, others, strict=True)])
        if (n := int(differ.sum())) < 2:
            raise UserError(
                "conditioning_gap: the test images have no captions to exchange; leave it out"
            )

        def gaps(rows: range) -> Tensor:
            part = slice(rows.start, rows.stop)
            right, wrong = (losses_at(samples, rows, times, c[part]) for c in (own, others))
            return (wrong - right)[:, differ[part]]

        with samples.sampler.evaluating():
            parts = samples.measured(count, samples.at_once, gaps)
            gap = torch.cat(parts, dim=1)  # (times, images)

        def mean(values: Tensor) -> dict[str, float]:
            return {"mean": float(values.mean()), "stderr": float(values.std() / n**0.5)}

        at = {f"{t:g}": mean(each) for t, each in zip(times, gap, strict=True)}
        return {**mean(gap.mean(0)), "by_t": at, "images": gap.shape[1]}

    def figures(self, found: Found) -> list[Figure]:
        gap = normal_interval(found["mean"], found["stderr"])
        meaning = (
            "How much the loss on held-out images grows when each gets another one's caption; 0 "
            "means that the text is ignored."
        )
        return [Figure("Conditioning gap", gap.value, meaning, gap.interval)]

    def section(self, found: Found, samples: Samples) -> Section:
        by_t = {
            float(t): normal_interval(at["mean"], at["stderr"]) for t, at in found["by_t"].items()
        }
        caption = (
            f"Loss with another image's caption less that with the own one, "
            f"{found['images']:,} held-out images (bars: 95%)."
        )
        yield Chart(self.title, {"": by_t}, plots.TIME, "gap", caption)
