"""The training loop: batches, steps, records, samples, evaluations, checkpoints.

It knows nothing of the objective's mathematics, and every step is a function of its number and the
weights, so a resumed run goes on exactly as the run itself would have.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fluxsmith.config import RunConfig
from fluxsmith.data.images import to_uint8
from fluxsmith.data.imageset import evenly
from fluxsmith.data.loader import Batch, Loader
from fluxsmith.errors import UserError
from fluxsmith.kernels.accelerate import backend
from fluxsmith.kernels.compiling import uncompiled
from fluxsmith.kernels.cuda_graphs import CudaCapture, Graphed
from fluxsmith.pipeline import Pipeline, check_autoencoder
from fluxsmith.randomness import generator
from fluxsmith.sampling import render
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.files import write_text
from fluxsmith.training.averages import EMA, RunningMeans
from fluxsmith.training.caption_encoding import keep_text
from fluxsmith.training.console import TrainingConsole
from fluxsmith.training.diagnosis import Diagnosis
from fluxsmith.training.graphed import graphed
from fluxsmith.training.interrupt import Interrupt
from fluxsmith.training.movement import kinds_of
from fluxsmith.training.objective import Example, Objective
from fluxsmith.training.optimiser import build_optimiser, learning_rate, load_optimiser
from fluxsmith.training.recorder import Recorder
from fluxsmith.training.saving import Saver, copied
from fluxsmith.training.signals import Signals
from fluxsmith.training.step import Guard, Step, StepScalars, TrainStep, Update, joined
from fluxsmith.version import __version__

Evaluate = Callable[[Pipeline], dict[str, float]]  # the model's scores, by name

# The piece of the global batch that a step's random numbers belong to. So far a batch is one piece.
PIECE = 0

CAPTIONS_KEPT = 1000  # at most so many captions are kept in a checkpoint, to draw samples from


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
        self.loader = loader
        self.objective = objective
        self.evaluate = evaluate
        self.folder = Path(config.resolved_output_dir)
        own = [] if objective.module is None else [objective.module]
        self.optimiser = build_optimiser([pipeline, *own], config.train)
        self.ema = EMA(pipeline, config.train.ema_decay)
        # A fused optimiser on a GPU can skip a step that is not finite by itself.
        masked = pipeline.device.type == "cuda" and bool(self.optimiser.defaults.get("fused"))
        self.guard = Guard(config.train.max_bad_steps, pipeline.device)
        largest = config.train.grad_clip or float("inf")
        self.update = Update(pipeline, self.optimiser, self.ema, largest, host_sync=not masked)
        self.signals = Signals(config, pipeline, objective, self.ema)
        self.diagnosis = Diagnosis(config.train)
        kinds = kinds_of(pipeline, self.update.trained)
        self.means = RunningMeans(pipeline.device, objective.terms, kinds, largest)
        self.step_on_device = TrainStep(
            objective, config.train.accumulate, self.guard, self.means, self.update
        )
        self.graphed: Graphed | None = None
        if config.train.cuda_graphs:
            self.capture_steps(CudaCapture(pipeline.device))
        self.origin: dict[str, Any] = {}  # what this run was forked from
        captions = loader.captions()
        self.captions = evenly(captions, min(len(captions), CAPTIONS_KEPT))
        self.step = 0  # optimiser steps done
        self._waited = 0.0  # seconds for the loader, since the last record
        self._example: Example | None = None  # of the last step

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
                batch = self.next_batch()
                self.signals.before_step(self.step, batch)
                rate = self.train_step(batch)
            except UserError as error:  # no data or no graph: the weights are the last step's
                if self.step > start:
                    self._flush(recorder)
                    saved = saver.save_last(self.state_dict() | {"data": position})
                    raise UserError(f"{error}; what was trained is in {saved}") from None
                raise
            console.advance(self.step)
            if self.guard.exhausted(self.step, self.update.host_sync):
                saver.finish()
                why = self.explain_bad_step()
                raise UserError(f"{why}; the last good checkpoint is {saver.last_good()}")
            saver.check()
            record: dict[str, float] = {}
            look = self.step in self.signals.looks
            if look or self.step % train.log_every == 0 or self.step == train.steps:
                record = self.means.means()
                now = time.perf_counter()
                steps = self.step - clock_step
                speed = steps * train.batch_size / (now - clock)
                clock, clock_step = now, self.step
                waited, self._waited = self._waited / steps, 0.0
                record |= {"learning_rate": rate, "images_per_second": round(speed, 1)}
                record["data_wait"] = round(waited, 4)
                console.show(self.step, record.get("loss"), speed)
                record |= self.signals.against_linear(record)
            paused = time.perf_counter()
            if self.evaluate is not None and _due(self.step, self.config.evaluate.every):
                with _going_on(console):
                    record |= self._scores(self.evaluate)
            if look:
                with _going_on(console):
                    record |= self.signals.look(self.step)
            for line in self.diagnosis.lines(self.step, record):
                console.say(line)
            if record:
                recorder.write(self.step, record)
            if _due(self.step, train.sample_every):
                with _going_on(console):
                    recorder.write_picture(self.step, self.draw_samples())
            if _due(self.step, train.checkpoint_every):
                self._flush(recorder)
                saver.save(self.state_dict())
            clock += time.perf_counter() - paused  # images/s is training's own speed
        if self.step == start:
            return None
        self._flush(recorder)
        return saver.save_last(self.state_dict())

    def _flush(self, recorder: Recorder) -> None:
        """Writes to disk what has to be there before a checkpoint: the records so far, and the text
        embeddings made during training, whose last bits depend on the batch they were made in."""
        recorder.flush_to_disk()
        keep_text(self.pipeline)

    def next_batch(self) -> Batch:
        """The batch of the next step; the time that it takes is counted."""
        began = time.perf_counter()
        batch = self.loader.batch(self.step)
        self._waited += time.perf_counter() - began
        return batch

    def train_step(self, batch: Batch | None = None) -> float:
        """One optimiser step, on its own batch unless one is given; returns the learning rate that
        it took."""
        rate = learning_rate(self.step, self.config.train)
        address = self.config.seed, "train", self.step, PIECE
        noise = generator(*address, device=self.pipeline.device)
        batch = self.next_batch() if batch is None else batch
        self._example = self.objective.draw(batch, noise)
        inputs = self._prepared(self._example)
        scalars = StepScalars(rate, self.ema.share(self.step))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        if self.graphed is not None:
            self.graphed(Step(list(inputs), scalars))
        else:
            self.step_on_device(Step(inputs, scalars))
        self.step += 1
        return rate

    def capture_steps(self, capture: CudaCapture) -> None:
        """From now on, steps are captured as CUDA graphs and replayed."""
        self.graphed = graphed(self.step_on_device, self.pipeline, capture)

    def _prepared(self, example: Example) -> Iterator[Any]:
        """The micro-batches of an example, each prepared when it is asked for."""
        alike = self.graphed is not None
        for part in example.split(self.config.train.accumulate):
            yield self.objective.prepare(part, alike)

    def explain_bad_step(self) -> str:
        """Which losses of the last step were not finite. That step changed no weights, so it can
        be computed again."""
        assert self._example is not None
        losses = joined(list(map(self.objective.losses, self._prepared(self._example))))
        bad = losses.t[~losses.total.isfinite()]
        t = losses.t if not len(bad) else bad
        times = f"t = {float(t.min()):.4f}" + (f" to {float(t.max()):.4f}" if len(t) > 1 else "")
        what = f"the loss of {len(bad)} images at" if len(bad) else "the gradient of a batch at"
        return (
            f"step {self.step}: {what} {times} is not finite, the last of "
            f"{self.guard.limit} such steps in a row (train.max_bad_steps), which were all "
            f"skipped; lower train.learning_rate or look at the data"
        )

    def _scores(self, evaluate: Evaluate) -> dict[str, float]:
        """The averaged weights' scores."""
        with self.ema.in_place_of(self.pipeline), uncompiled():
            return evaluate(self.pipeline)

    def draw_samples(self) -> Path:
        """Draws the grid of this step with the averaged weights and the same noise every time."""
        sample = self.config.sample
        prompts = sample.prompts or evenly(self.captions, sample.num_samples)
        with self.ema.in_place_of(self.pipeline), uncompiled():
            images = Sampler(self.pipeline, kernels=self.config.train.kernels).generate(
                prompts, seed=self.config.seed
            )
        sheet = render.grid(to_uint8(images), prompts)
        path = self.folder / f"sample-{self.step}.png"
        settings = sample.model_dump(exclude={"num_samples", "prompts"})
        about = {"step": self.step, "seed": self.config.seed, "prompts": prompts, **settings}
        render.save_png(path, sheet, about)
        write_text(path.with_suffix(".txt"), "\n".join(prompts) + "\n")
        return path

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as a checkpoint holds it."""
        module = self.objective.module
        return {
            "format": checkpoints.FORMAT,
            "step": self.step,
            "images_seen": self.step * self.config.train.batch_size,
            "config": self.config.model_dump(),
            "model": self.pipeline.state_dict(),
            "ema": self.ema.weights,
            "optimizer": self.optimiser.state_dict(),
            "data": self.loader.position(self.step),
            "window": self.means.state_dict() | self.guard.state_dict() | self._seen(),
            "metadata": {
                "fluxsmith": __version__,
                "torch": torch.__version__.partition("+")[0],
                "captions": self.captions,
                "autoencoder": self.pipeline.autoencoder.digest,
                "threads": torch.get_num_threads(),
                "products": backend(self.pipeline.device, self.config.train.kernels),
                "forked_from": self.origin,
                **self.pipeline.text_metadata(),
            },
            **({} if module is None else {"objective": module.state_dict()}),
        }

    def _seen(self) -> dict[str, Any]:
        """What was looked at and said so far."""
        if not self.signals.looks:
            return {}
        return {"signals": self.signals.state_dict(), "diagnosis": self.diagnosis.state_dict()}

    def load_state_dict(self, state: dict[str, Any], origin: str) -> None:
        """Takes over the state of a checkpoint, so that the next step is the one after it."""
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
        if self.graphed is not None:
            self.graphed.forget()  # they read the optimiser's old state
        try:
            # copied, since AdamW would otherwise go on writing into the mapped file's pages
            load_optimiser(self.optimiser, copied(state["optimizer"]))
            self.means.load_state_dict(state["window"])
            self.guard.load_state_dict(state["window"])
            self.signals.load_state_dict(state["window"].get("signals", {}))
            self.diagnosis.load_state_dict(state["window"].get("diagnosis", {}))
            if self.objective.module is not None:
                self.objective.module.load_state_dict(state["objective"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"{origin} doesn't fit this run's training state: {error}") from None
        self.step = state["step"]
        self.origin = state["metadata"].get("forked_from", {})

    def fork(self, state: dict[str, Any], origin: str) -> None:
        """Starts a new run, at step 0, from the averaged weights of a checkpoint."""
        check_autoencoder(self.pipeline.autoencoder, state["metadata"], origin)
        self.pipeline.expect_text(state["metadata"], origin)
        self.pipeline.load_weights(state["ema"], origin)
        self.ema.load(state["ema"])
        self.origin = {"checkpoint": origin, "step": state["step"]}


@contextmanager
def _going_on(console: TrainingConsole) -> Iterator[None]:
    """Scores and pictures that can't be had are reported, and training goes on without them."""
    try:
        yield
    except UserError as error:
        console.say(f"{error}; training goes on")


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
