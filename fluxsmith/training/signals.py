"""What is measured of a run beside its loss, to tell whether it learns what it should: a few looks
at the weights, at the network and at pictures that it does not train on.

A look changes nothing of the training, and what it draws is addressed. All of them together take a
hundredth of a run's time.
"""

import logging
import math
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.data.captions import exchanged
from fluxsmith.data.loader import Batch
from fluxsmith.errors import UserError
from fluxsmith.flow.baseline import linear_loss
from fluxsmith.flow.timesteps import stratified_grid
from fluxsmith.kernels.compiling import uncompiled
from fluxsmith.parallel.shares import Whole
from fluxsmith.pipeline import Pipeline
from fluxsmith.randomness import generator
from fluxsmith.training.alignment import Alignment
from fluxsmith.training.averages import EMA, QUARTILES
from fluxsmith.training.held_out import HELD_OUT, HeldOut
from fluxsmith.training.movement import Movement
from fluxsmith.training.norm_error import norm_error
from fluxsmith.training.objective import Objective
from fluxsmith.training.step import losses_of

LOOKS = 10  # evenly spread over a run; and one more at half of the first
SHORTEST = 100  # steps of a run that is looked at
# Forward passes of the network over a batch that all looks together may take, for each step of
# training, which takes about three.
PASSES = 0.02
MOST_IMAGES = 512  # held-out pictures whose loss is taken
LEAST = 16  # pictures that say anything
ALIGNED = 200  # batches, at most, whose captions are compared with their pictures
TYPICAL = 64  # pictures whose variance is taken for the data's
GRID = 4096  # times over which the loss of a linear prediction is averaged

Record = dict[str, float]

log = logging.getLogger(__name__)


def looks(steps: int) -> frozenset[int]:
    """The steps after which a run is looked at; none where it is too short."""
    if steps < SHORTEST:
        return frozenset()
    return frozenset([steps // (2 * LOOKS), *(steps * i // LOOKS for i in range(1, LOOKS + 1))])


class Signals:
    """Looks at a run after some of its steps."""

    def __init__(
        self, config: RunConfig, pipeline: Pipeline, objective: Objective, held: Whole, ema: EMA
    ) -> None:
        train = config.train
        self.config = config
        self.pipeline = pipeline
        self.objective = objective
        learns_from_data = train.diagnose and objective.needs_data(config)
        self.looks = looks(train.steps) if learns_from_data else frozenset()
        self.alignment = Alignment(pipeline.device)
        self._best: list[float] = []  # losses of simpler predictions
        self._movement = Movement(pipeline, held, ema)
        self._encoded = False  # whether batches hold latents
        self._size = train.batch_size // train.accumulate  # of a batch that the network takes

    @cached_property
    def held_out(self) -> HeldOut:
        """Empty where the run isn't looked at, or its data has no test images that can be used."""
        if self.looks:
            try:
                found = HeldOut.load(self.config)
                self.pipeline.text.check(found.captions)
                return found
            except UserError as error:
                log.warning("signals are without held-out pictures: %s", error)
        return HeldOut(torch.empty(0), [])

    @property
    def captions(self) -> list[str]:
        """All that a look reads."""
        return list(dict.fromkeys(self.held_out.captions[: self._images]))

    def need_batch(self, step: int) -> bool:
        """Whether `before_step` has to see all of a batch."""
        first = self.objective.of_velocity and not self._best
        return bool(self.looks) and (first or self._aligns(step))

    def _aligns(self, step: int) -> bool:
        """Whether the batch of a step is one of those whose captions are looked at: in the first
        tenth of a run, and evenly spread over it."""
        tenth = self.config.train.steps // LOOKS
        return step < tenth and step % -(-tenth // ALIGNED) == 0

    def before_step(self, step: int, batch: Batch) -> None:
        """To be called before step `step`, counted from 0, with its batch."""
        self._encoded = batch.encoded
        if self.looks and not self._best:
            self._best = self._best_losses(batch)
        if self.looks and self._aligns(step):
            self.alignment.add(batch.images, batch.captions)
        if step + 1 in self.looks:
            self._movement.begin()

    @torch.no_grad()
    def look(self, step: int) -> Record:
        """What there is to see after `step` steps; `before_step` was called before the last one."""
        record = self._movement.end()
        with uncompiled():
            record["norm_error"] = norm_error(self.pipeline.network)
            record |= self._held_out_losses()
        if step <= self.config.train.steps // LOOKS:
            record |= self._captions()
        return {key: value for key, value in record.items() if math.isfinite(value)}

    def against_linear(self, record: Record) -> Record:
        """A record's losses by quartile of t over those of the best linear prediction, and how much
        is `learned`: 0 with the loss of the best constant prediction, 1 with the linear one's."""
        if "loss" not in record or not self._best:
            return {}
        constant, linear, *quartiles = self._best
        keys = [f"loss_q{i + 1}" for i in range(QUARTILES)]
        found = {
            f"relative_{key}": record[key] / best
            for key, best in zip(keys, quartiles, strict=True)
            if key in record and best > 0  # 0 where all pictures are one
        }
        learned = (constant - record["loss"]) / (constant - linear)
        return found | ({"learned": learned} if math.isfinite(learned) else {})

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, **self.alignment.state_dict()} if self.looks else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.looks and state:
            self._best = list(state["best"])
            self.alignment.load_state_dict(state)

    @cached_property
    def _images(self) -> int:
        """Held-out pictures whose loss a look takes, so that all looks keep to PASSES."""
        train = self.config.train
        if not self.objective.of_velocity or not self.looks:
            return 0
        most = PASSES * train.steps * train.batch_size / (2 * len(self.looks))
        return min(max(int(most), LEAST), MOST_IMAGES, len(self.held_out))

    @cached_property
    @torch.no_grad()
    def _latents(self) -> list[Batch]:
        """These pictures in batches, encoded once, unless the objective needs them as they are."""
        return self._encode(self._images)

    def _encode(self, n: int) -> list[Batch]:
        batches = self.held_out.batches(n, self._size, self.pipeline.device)
        if self.objective.needs_pixels:
            return [*batches]
        return [Batch(self.pipeline.encode(b), b.captions, encoded=True) for b in batches]

    @torch.no_grad()
    def _best_losses(self, batch: Batch) -> list[float]:
        """The loss of the best constant and of the best linear prediction, and the latter by
        quartile of t, for held-out pictures, or those of a batch where there are none."""
        if not self.objective.of_velocity:
            return []
        latents = [self.pipeline.encode(typical) for typical in self._encode(TYPICAL)]
        if sum(map(len, latents)) < LEAST:
            latents = [self.pipeline.encode(batch)]
        variance = torch.cat(latents).var(0).cpu()
        t = self.config.flow.choice.quantile(stratified_grid(GRID))
        losses, quartile = linear_loss(variance, t), (t * QUARTILES).long().clamp(max=QUARTILES - 1)
        by_quartile = [losses[quartile == i].mean() for i in range(QUARTILES)]
        return [float(x) for x in (1 + variance.mean(), losses.mean(), *by_quartile)]

    def _held_out_losses(self) -> Record:
        """The loss on held-out pictures, and how much larger it is with another one's caption but
        the same noise: the conditioning gap, 0 where the text is ignored."""
        if self._images < LEAST:
            return {}
        own, gaps = [], []
        all_others = iter(exchanged([c for batch in self._latents for c in batch.captions]))
        for i, batch in enumerate(self._latents):
            others = replace(batch, captions=[*islice(all_others, len(batch))])
            right, wrong = self._losses(batch, i), self._losses(others, i)
            pairs = zip(batch.captions, others.captions, strict=True)
            own.append(right)
            gaps.append((wrong - right)[torch.tensor([a != b for a, b in pairs])])
        gap, found = torch.cat(gaps), {"loss_held_out": float(torch.cat(own).mean())}
        if len(gap) > 1:
            found["conditioning_gap"] = float(gap.mean())
            found["conditioning_gap_stderr"] = float(gap.std() / len(gap) ** 0.5)
        return found

    def _losses(self, batch: Batch, number: int) -> Tensor:
        """(b,), with noise and times that depend on the batch's number alone."""
        draw = generator(self.config.seed, "look", number, device=self.pipeline.device)
        inputs = self.objective.prepare(self.objective.draw(batch, draw))
        with torch.set_grad_enabled(self.objective.second_derivatives):
            return losses_of(self.objective, inputs).total.detach().cpu()

    def _captions(self) -> Record:
        """Whether captions go with pictures as they do in held-out ones."""
        record = {"captions_empty": self.alignment.empty / max(1, self.alignment.seen)}
        names = "caption_alignment", "caption_alignment_stderr", "picture_spread"
        for ending, each in {"": self.alignment, "_held_out": self._held_out_alignment}.items():
            found = zip(names, each.figures(), strict=True)
            record |= {name + ending: value for name, value in found}
        return record

    @cached_property
    def _held_out_alignment(self) -> Alignment:
        """Of latents, which take longer, where those are trained on."""
        found, most = Alignment(self.pipeline.device), MOST_IMAGES if self._encoded else HELD_OUT
        for batch in self.held_out.batches(most, self._size, self.pipeline.device):
            images = self.pipeline.encode(batch) if self._encoded else batch.images
            found.add(images, batch.captions)
        return found
