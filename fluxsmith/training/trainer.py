"""The training loop: draw, losses, gradient, clip, optimiser, average; records, samples,
checkpoints. It holds no knowledge of the objective, and every step is a function of its number and
the weights, which is what makes a resumed run the run.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fluxsmith import checkpoint as checkpoints
from fluxsmith import render
from fluxsmith.compiling import uncompiled
from fluxsmith.config import RunConfig
from fluxsmith.data.images import to_uint8
from fluxsmith.data.loader import Loader
from fluxsmith.errors import UserError
from fluxsmith.files import write_text
from fluxsmith.graphs import Capture, CudaCapture, Graphed
from fluxsmith.model import libraries
from fluxsmith.pipeline import Pipeline, check_autoencoder
from fluxsmith.randomness import generator
from fluxsmith.training.console import TrainingConsole
from fluxsmith.training.descent import Descent, Step
from fluxsmith.training.ema import EMA
from fluxsmith.training.graphed import graphed
from fluxsmith.training.guard import Guard
from fluxsmith.training.interrupt import Interrupt
from fluxsmith.training.metrics import Recorder, Window
from fluxsmith.training.objective import Example, Inputs, Losses, Objective
from fluxsmith.training.optimiser import build_optimiser, learning_rate, load_optimiser
from fluxsmith.training.saving import Saver, copied
from fluxsmith.training.text import keep_text
from fluxsmith.training.update import Pace, Update
from fluxsmith.version import __version__

Evaluate = Callable[[Pipeline], dict[str, float]]  # the model's scores, by name

CAPTIONS_KEPT = 1000  # so many distinct captions travel in a checkpoint, to draw samples from


class Trainer:
    """Trains a pipeline on batches, from step `self.step` to `config.train.steps`."""

    def __init__(
        self,
        config: RunConfig,
        pipeline: Pipeline,
        loader: Loader,
        objective: Objective,
        evaluate: Evaluate | None = None,
    ) -> None:
        self.config = config
        self.pipeline = pipeline.train()
        self.pipeline.precision = config.train.precision
        self.loader = loader
        self.objective = objective
        self.evaluate = evaluate
        self.folder = Path(config.resolved_output_dir)
        self.optimiser = build_optimiser(pipeline, config.train)
        self.ema = EMA(pipeline, config.train.ema_decay)
        self.window = Window(pipeline.device)
        fused = pipeline.device.type == "cuda" and self.optimiser.defaults["fused"]
        self.guard = Guard(config.train.max_bad_steps, pipeline.device)
        largest = config.train.grad_clip or float("inf")
        self.update = Update(pipeline, self.optimiser, self.ema, largest, waits=not fused)
        accumulate = config.train.accumulate
        self.descent = Descent(objective, accumulate, self.guard, self.window, self.update)
        self._graphed: Graphed[Step, None] | None = None
        if config.train.cuda_graphs:
            self.capture_steps(CudaCapture(pipeline.device))
        self.origin: dict[str, Any] = {}  # what this run was forked from
        captions = loader.captions()
        self.captions = spread(captions, min(len(captions), CAPTIONS_KEPT))
        self.step = 0  # optimiser steps done
        self._example: Example | None = None  # that the last one was taken on

    def run(
        self, recorder: Recorder, console: TrainingConsole, interrupt: Interrupt, saver: Saver
    ) -> Path | None:
        """Trains to the end, or to the end of the step in which the interrupt came.

        Returns the checkpoint that holds the last step; None where no step was made. Raises a
        UserError where the run can't go on, and then the last good checkpoint is named.
        """
        train = self.config.train
        start = self.step
        clock, clock_step = time.perf_counter(), self.step
        while self.step < train.steps and not interrupt:
            position = self.loader.position(self.step)
            try:
                rate = self.train_step()
            except UserError as error:  # no data, no graph; the weights are those of the last step
                if self.step > start:
                    self._flush(recorder)
                    saved = saver.save_last(self.state_dict() | {"data": position})
                    raise UserError(f"{error}; what was trained is in {saved}") from None
                raise
            console.advance(self.step)
            if self.guard.exhausted(self.step, self.update.waits):
                saver.finish()
                why = self.explain_bad_step()
                raise UserError(f"{why}; the last good checkpoint is {saver.last_good()}")
            saver.check()
            record: dict[str, float] = {}
            if self.step % train.log_every == 0 or self.step == train.steps:
                record = self.window.means()
                now = time.perf_counter()
                speed = (self.step - clock_step) * train.batch_size / (now - clock)
                clock, clock_step = now, self.step
                record |= {"learning_rate": rate, "images_per_second": round(speed, 1)}
                console.show(self.step, record.get("loss"), speed)
            paused = time.perf_counter()
            if self.evaluate is not None and _due(self.step, self.config.evaluate.every):
                record |= self._scores(self.evaluate, console)
            if record:
                recorder.write(self.step, record)
            if _due(self.step, train.sample_every):
                self._show_samples(recorder, console)
            if _due(self.step, train.checkpoint_every):
                self._flush(recorder)
                saver.save(self.state_dict())
            clock += time.perf_counter() - paused  # images/s is training's own speed
        if self.step == start:
            return None
        self._flush(recorder)
        return saver.save_last(self.state_dict())

    def _flush(self, recorder: Recorder) -> None:
        """What a checkpoint goes with reaches the disk before it: the records so far, and the
        embeddings of captions met on the way, whose last bits depend on those encoded with them."""
        recorder.flush_to_disk()
        keep_text(self.pipeline)

    def train_step(self) -> float:
        """One optimiser step; returns the learning rate that it took."""
        rate = learning_rate(self.step, self.config.train)
        noise = generator(self.config.seed, "train", self.step, 0, device=self.pipeline.device)
        self._example = self.objective.draw(self.loader.batch(self.step), noise)
        pieces, pace = self._pieces(self._example), Pace(rate, self.ema.share(self.step))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        if self._graphed is not None:
            self._graphed(Step(list(pieces), pace))
        else:
            self.descent(Step(pieces, pace))
        self.step += 1
        return rate

    def capture_steps(self, capture: Capture) -> None:
        """From now on, steps are captured as CUDA graphs and replayed."""
        self._graphed = graphed(self.descent, self.pipeline, capture)

    def _pieces(self, example: Example) -> Iterator[Inputs]:
        pieces = example.split(self.config.train.accumulate)
        alike = self._graphed is not None
        return (self.objective.prepare(piece, alike) for piece in pieces)

    def explain_bad_step(self) -> str:
        """What was not finite in the last step, which left the weights alone, so that it can be
        looked at again."""
        assert self._example is not None
        with torch.no_grad():
            parts = [self.objective.losses(piece) for piece in self._pieces(self._example)]
        losses = Losses.joined(parts)
        bad = losses.t[~losses.values.isfinite()]
        t = losses.t if not len(bad) else bad
        times = f"t = {float(t.min()):.4f}" + (f" to {float(t.max()):.4f}" if len(t) > 1 else "")
        what = f"the loss of {len(bad)} images at" if len(bad) else "the gradient of a batch at"
        return (
            f"step {self.step}: {what} {times} is not finite, the last of "
            f"{self.guard.limit} such steps in a row (train.max_bad_steps), which were all "
            f"skipped; lower train.learning_rate or look at the data"
        )

    def _scores(self, evaluate: Evaluate, console: TrainingConsole) -> dict[str, float]:
        """The averaged weights' scores; none where they can't be had, which is worth no run."""
        try:
            with self.ema.in_place_of(self.pipeline), uncompiled():
                return evaluate(self.pipeline)
        except UserError as error:
            console.say(f"{error}; training goes on")
            return {}

    def _show_samples(self, recorder: Recorder, console: TrainingConsole) -> None:
        """Draws pictures; where that can't be, training goes on without them."""
        try:
            recorder.write_picture(self.step, self.draw_samples())
        except UserError as error:
            console.say(f"{error}; training goes on")

    def draw_samples(self) -> Path:
        """Draws the grid of this step with the averaged weights and the same noise as ever."""
        prompts = spread(self.captions, self.config.sample.num_samples)
        with self.ema.in_place_of(self.pipeline), uncompiled():
            images = self.pipeline.generate(prompts, seed=self.config.seed)
        sheet = render.grid(to_uint8(images), prompts)
        path = self.folder / f"sample-{self.step}.png"
        settings = self.config.sample.model_dump(exclude={"num_samples"})
        about = {"step": self.step, "seed": self.config.seed, "prompts": prompts, **settings}
        render.save_png(path, sheet, about)
        write_text(path.with_suffix(".txt"), "\n".join(prompts) + "\n")
        return path

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as a checkpoint holds it."""
        return {
            "format": checkpoints.FORMAT,
            "step": self.step,
            "images_seen": self.step * self.config.train.batch_size,
            "config": self.config.model_dump(),
            "model": self.pipeline.state_dict(),
            "ema": self.ema.weights,
            "optimizer": self.optimiser.state_dict(),
            "data": self.loader.position(self.step),
            "window": self.window.state_dict() | self.guard.state_dict(),
            "metadata": {
                "fluxsmith": __version__,
                "torch": torch.__version__.partition("+")[0],
                "captions": self.captions,
                "autoencoder": self.pipeline.autoencoder.digest,
                "threads": torch.get_num_threads(),
                "products": libraries.computing(self.pipeline.device),
                "forked_from": self.origin,
                **self.pipeline.text_metadata(),
            },
        }

    def load_state_dict(self, state: dict[str, Any], origin: str) -> None:
        """Takes over from a checkpoint; the next step is the one that would have come next."""
        if not state["optimizer"]:
            raise UserError(
                f"{origin} was imported, and holds no training state to resume; start from its "
                f"weights with train.init_from={origin}"
            )
        try:
            self.loader.resume(state["data"], state["step"], origin)
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{origin} doesn't say where its data stood: {error}") from None
        check_autoencoder(self.pipeline.autoencoder, state["metadata"], origin)
        self.pipeline.expect_text(state["metadata"], origin)
        self.pipeline.load_weights(state["ema"], origin)  # checks that they fit
        self.ema.load(state["ema"])
        self.pipeline.load_weights(state["model"], origin)
        if self._graphed is not None:
            self._graphed.forget()  # the optimiser's state is to be another
        try:
            # copied, since AdamW would otherwise go on writing into the mapped file's pages
            load_optimiser(self.optimiser, copied(state["optimizer"]))
            self.window.load_state_dict(state["window"])
            self.guard.load_state_dict(state["window"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"{origin} doesn't fit this run's optimiser: {error}") from None
        self.step = state["step"]
        self.origin = state["metadata"].get("forked_from", {})

    def fork(self, state: dict[str, Any], origin: str) -> None:
        """Starts a new run, at step 0, from the averaged weights of a checkpoint."""
        self.pipeline.expect_text(state["metadata"], origin)
        self.pipeline.load_weights(state["ema"], origin)
        self.ema.load(state["ema"])
        self.origin = {"checkpoint": origin, "step": state["step"]}


def spread(captions: list[str], n: int) -> list[str]:
    """n captions, evenly spread over those there are; they repeat where there are fewer."""
    if len(captions) <= n:
        return [captions[i % len(captions)] for i in range(n)]
    return [captions[i * len(captions) // n] for i in range(n)]


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
