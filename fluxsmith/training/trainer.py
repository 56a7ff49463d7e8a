"""The training loop: draw, losses, gradient, clip, optimiser, average; records, samples,
checkpoints. It holds no knowledge of the objective, and every step is a function of its number and
the weights, which is what makes a resumed run the run.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fluxsmith import checkpoint as checkpoints
from fluxsmith import render
from fluxsmith.config import RunConfig
from fluxsmith.data.images import to_uint8
from fluxsmith.data.loader import Loader
from fluxsmith.errors import UserError
from fluxsmith.files import write_text
from fluxsmith.pipeline import Pipeline, check_autoencoder
from fluxsmith.randomness import generator
from fluxsmith.training.console import TrainingConsole
from fluxsmith.training.ema import EMA
from fluxsmith.training.interrupt import Interrupt
from fluxsmith.training.metrics import Recorder, Window
from fluxsmith.training.objective import Objective
from fluxsmith.training.optimiser import build_optimiser, learning_rate, load_optimiser
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
        self.pipeline = pipeline
        self.loader = loader
        self.objective = objective
        self.evaluate = evaluate
        self.folder = Path(config.resolved_output_dir)
        self.optimiser = build_optimiser(pipeline, config.train)
        self.ema = EMA(pipeline, config.train.ema_decay)
        self.window = Window(pipeline.device)
        captions = loader.captions()
        self.captions = spread(captions, min(len(captions), CAPTIONS_KEPT))
        self.step = 0  # optimiser steps done

    def run(
        self, recorder: Recorder, console: TrainingConsole, interrupt: Interrupt
    ) -> Path | None:
        """Trains to the end, or to the end of the step in which the interrupt came.

        Returns the checkpoint that holds the last step; None where no step was made.
        """
        train = self.config.train
        saved: Path | None = None
        saved_at = self.step
        clock, clock_step = time.perf_counter(), self.step
        self.pipeline.train()
        self.pipeline.precision = train.precision
        while self.step < train.steps and not interrupt:
            rate = self.train_step()
            console.advance(self.step)
            record: dict[str, float] = {}
            if self.step % train.log_every == 0 or self.step == train.steps:
                record = self.window.means()
                now = time.perf_counter()
                speed = (self.step - clock_step) * train.batch_size / (now - clock)
                clock, clock_step = now, self.step
                record |= {"learning_rate": rate, "images_per_second": round(speed, 1)}
                console.show(self.step, record["loss"], speed)
            paused = time.perf_counter()
            if self.evaluate is not None and _due(self.step, self.config.evaluate.every):
                with self.ema.in_place_of(self.pipeline):
                    record |= self.evaluate(self.pipeline)
            if record:
                recorder.write(self.step, record)
            if _due(self.step, train.sample_every):
                recorder.write_picture(self.step, self.draw_samples())
            if _due(self.step, train.checkpoint_every):
                saved, saved_at = self.save(), self.step
            clock += time.perf_counter() - paused  # images/s is training's own speed
        return self.save() if saved_at != self.step else saved

    def train_step(self) -> float:
        """One optimiser step; returns the learning rate that it took."""
        train = self.config.train
        rate = learning_rate(self.step, train)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        batch = self.loader.batch(self.step)
        noise = generator(self.config.seed, "train", self.step, 0, device=self.pipeline.device)
        for piece in self.objective.draw(batch, noise).split(train.accumulate):
            losses = self.objective(piece)
            (losses.values.mean() / train.accumulate).backward()
            self.window.add_losses(losses)
        largest = train.grad_clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.pipeline.parameters(), largest)
        self.window.add_norm(norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.ema.update(self.pipeline, self.step)
        self.step += 1
        return rate

    def draw_samples(self) -> np.ndarray:
        """Draws the grid of this step with the averaged weights and the same noise as ever."""
        prompts = spread(self.captions, self.config.sample.num_samples)
        with self.ema.in_place_of(self.pipeline):
            images = self.pipeline.generate(prompts, seed=self.config.seed)
        sheet = render.grid(to_uint8(images), prompts)
        path = self.folder / f"sample-{self.step}.png"
        settings = self.config.sample.model_dump(exclude={"num_samples"})
        about = {"step": self.step, "seed": self.config.seed, "prompts": prompts, **settings}
        render.save_png(path, sheet, about)
        write_text(path.with_suffix(".txt"), "\n".join(prompts) + "\n")
        return np.asarray(sheet)

    def save(self) -> Path:
        """Writes the checkpoint of this step and deletes those past retention."""
        train = self.config.train
        path = checkpoints.checkpoint_path(self.folder, self.step)
        checkpoints.save(path, self.state_dict())
        checkpoints.prune(self.folder, train.keep_checkpoints, train.keep_every)
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
            "window": self.window.state_dict(),
            "metadata": {
                "fluxsmith": __version__,
                "torch": torch.__version__.partition("+")[0],
                "captions": self.captions,
                "autoencoder": self.pipeline.autoencoder.digest,
            },
        }

    def load_state_dict(self, state: dict[str, Any], origin: str) -> None:
        """Takes over from a checkpoint; the next step is the one that would have come next."""
        if not state["optimizer"]:
            raise UserError(
                f"{origin} was imported, and holds no training state to resume; start from its "
                f"weights with train.init_from={origin}"
            )
        self.loader.resume(state["data"], state["step"], origin)
        check_autoencoder(self.pipeline.autoencoder, state["metadata"], origin)
        self.pipeline.load_weights(state["ema"], origin)  # checks that they fit
        self.ema.load(state["ema"])
        self.pipeline.load_weights(state["model"], origin)
        try:
            load_optimiser(self.optimiser, _copied(state["optimizer"]))
            self.window.load_state_dict(state["window"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{origin} doesn't fit this run's optimiser: {error}") from None
        self.step = state["step"]


def spread(captions: list[str], n: int) -> list[str]:
    """n captions, evenly spread over those there are; they repeat where there are fewer."""
    if len(captions) <= n:
        return [captions[i % len(captions)] for i in range(n)]
    return [captions[i * len(captions) // n] for i in range(n)]


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _copied(state: Any) -> Any:
    """A copy in memory: AdamW would otherwise go on writing into the mapped file's pages."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_copied(value) for value in state]
    return state
