"""The training loop: batches, steps, records, samples, evaluations, checkpoints.

It knows nothing of the objective's mathematics, and every step is a function of its number and the
weights, so a resumed run goes on exactly as the run itself would have.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.data.images import to_uint8
from fluxsmith.data.imageset import evenly
from fluxsmith.data.loader import Batch, Loader
from fluxsmith.data.records import Tally
from fluxsmith.errors import UserError
from fluxsmith.kernels.accelerate import backend
from fluxsmith.kernels.compiling import uncompiled
from fluxsmith.kernels.cuda_graphs import CudaCapture, Graphed
from fluxsmith.parallel.gradients import Gradients
from fluxsmith.parallel.ranks import ALONE, Ranks
from fluxsmith.parallel.shares import Whole
from fluxsmith.pipeline import Pipeline, check_autoencoder
from fluxsmith.randomness import address_seed, generator
from fluxsmith.sampling.edit import Edit, before_and_after
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.averages import EMA, RunningMeans
from fluxsmith.training.caption_encoding import keep_text
from fluxsmith.training.console import TrainingConsole
from fluxsmith.training.diagnosis import Diagnosis
from fluxsmith.training.graphed import graphed
from fluxsmith.training.held_out import shown
from fluxsmith.training.interrupt import Interrupt
from fluxsmith.training.lock import FolderTakenError
from fluxsmith.training.movement import kinds_of
from fluxsmith.training.objective import Example, Objective
from fluxsmith.training.optimiser import build_optimiser, learning_rate, load_optimiser
from fluxsmith.training.recorder import Recorder
from fluxsmith.training.saving import Saver, copied
from fluxsmith.training.signals import Signals
from fluxsmith.training.snapshots import Snapshots
from fluxsmith.training.step import Guard, Step, StepScalars, TrainStep, Update, joined
from fluxsmith.version import __version__

Evaluate = Callable[[Pipeline], dict[str, float]]  # the model's scores, by name
Change = Callable[[Tensor, Tensor], Tensor]  # of what belongs to a parameter, which comes first

CAPTIONS_KEPT = 1000  # at most so many captions are kept in a checkpoint, to draw samples from


class NoDataError(UserError):
    """There is no next batch, which all ranks know."""


class Trainer:
    """Trains a pipeline on batches, from step `self.step` to `config.train.steps`."""

    def __init__(
        self,
        config: RunConfig,
        pipeline: Pipeline,
        loader: Loader,
        objective: Objective,
        evaluate: Evaluate | None = None,
        ranks: Ranks = ALONE,
        pieces: int = 1,
        held: Whole | None = None,
    ) -> None:
        self.config = config
        self.ranks = ranks
        self.pieces = pieces  # of a batch, each with randomness of its own
        self.microbatches = -(-config.train.accumulate // pieces)  # of a piece
        self.pipeline = pipeline.train()
        self.held = held or Whole(pipeline)  # what this rank has of it
        self.loader = loader
        self.objective = objective
        self.evaluate = evaluate
        self.folder = Path(config.resolved_output_dir)
        own = {} if objective.module is None else {objective.module: objective.module_rate}
        parts = self.held.parts
        # Whether it must not matter how ranks cut a tensor: a single piece is one rank's.
        alike = config.train.deterministic and pieces > 1
        train = config.train.model_copy(update={"deterministic": alike})
        self.optimiser = build_optimiser({parts: 1.0} | own, train)
        self.ema = EMA(parts, config.train.ema_decay)
        # A fused optimiser on a GPU can skip a step that is not finite by itself.
        masked = pipeline.device.type == "cuda" and bool(self.optimiser.defaults.get("fused"))
        self.guard = Guard(config.train.max_bad_steps, pipeline.device)
        largest = config.train.grad_clip or float("inf")
        self.update = Update(parts, self.optimiser, self.ema, largest, host_sync=not masked)
        self.signals = Signals(config, pipeline, objective, self.held, self.ema)
        self.diagnosis = Diagnosis(config.train)
        whole = config.parallel.shard == 1
        self.snapshots = Snapshots(self.folder, config.train, ranks, whole)
        kinds = kinds_of(parts, self.update.trained)
        self.means = RunningMeans(pipeline.device, objective.terms, kinds, largest)
        exact, trained = config.train.deterministic, self.update.trained
        gradients = Gradients(ranks, pieces, self.microbatches, trained, self.held, exact)
        self.own = gradients.own  # the pieces that are computed here
        size = config.train.batch_size // pieces
        rows = [row for i in self.own for row in range(i * size, (i + 1) * size)]
        self._rows = rows if ranks.size > 1 else None  # of a batch; None: all
        self.step_on_device = TrainStep(
            objective,
            pieces * self.microbatches,
            self.guard,
            self.means,
            self.update,
            gradients if pieces > 1 else None,
        )
        self.graphed: Graphed | None = None
        if config.train.cuda_graphs:
            self.capture_steps(CudaCapture(pipeline.device))
        self.origin: dict[str, Any] = {}  # what this run was forked from
        captions = loader.captions()
        self.captions = evenly(captions, min(len(captions), CAPTIONS_KEPT))
        self.step = 0  # optimiser steps done
        self.timed, self._seconds = 0, 0.0  # steps that were timed, and what they took
        self._waited = 0.0  # seconds for the loader, since the last record
        self._examples: list[Example] = []  # of the last step
        self._dropout: list[int] = []  # seeds of its pieces
        self._bad = [0] * ranks.size  # how many pictures each rank can't use
        self._tally: Tally | None = getattr(loader, "tally", None)  # where they are decoded now
        if self._tally is not None:
            self._tally.alone = ranks.size == 1

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
        while self.step < train.steps:
            try:
                rate = self._next_step(interrupt)
            except UserError as error:  # no data or no graph: the weights are the last step's
                together = self.ranks.size == 1 or isinstance(error, NoDataError)
                if together and self.step > start:
                    self._flush(recorder)
                    saved = saver.save_last(self.state_dict())
                    raise UserError(f"{error}; what was trained is in {saved}") from None
                raise
            if rate is None:
                break
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
                self.timed, self._seconds = self.timed + steps, self._seconds + now - clock
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
                    recorder.write_samples(self.step, *self.draw_samples())
            with _going_on(console):
                self.snapshots.keep(self.step, self.state_dict, recorder.claim)
            if _due(self.step, train.checkpoint_every):
                self._flush(recorder)
                saver.save(self.state_dict())
            clock += time.perf_counter() - paused  # images/s is training's own speed
        if self.step == start:
            return None
        self._flush(recorder)
        return saver.save_last(self.state_dict())

    @property
    def seconds_a_step(self) -> float:
        """What a step took so far, without pictures, evaluations and checkpoints."""
        return self._seconds / max(1, self.timed)

    def _next_step(self, interrupt: Interrupt) -> float | None:
        """Takes a step, and returns its learning rate; None where any rank was asked to stop.
        Raises a NoDataError where any of them has no data."""
        problem = ""
        try:
            batch = self.next_batch()
        except UserError as error:
            problem = str(error)
        ranks, tally = self.ranks, self._tally
        counts = (len(tally.bad), tally.seen) if tally else (0, 0)
        told = [x if rank == ranks.rank else 0 for x in counts for rank in range(ranks.size)]
        asked, lacking, *told = ranks.agree(interrupt.number, int(bool(problem)), *told)
        if lacking:
            raise NoDataError(next(filter(None, ranks.tell(problem))))
        bad, seen = told[: ranks.size], told[ranks.size :]
        if tally and ranks.size > 1 and bad != self._bad:
            new = ranks.tell(dict(islice(tally.bad.items(), self._bad[ranks.rank], None)))
            self._bad = bad
            try:
                tally.join(sum(seen) - tally.seen, new[: ranks.rank] + new[ranks.rank + 1 :])
            except UserError as error:
                raise NoDataError(str(error)) from None
        if interrupt.heard(asked):
            return None
        self.signals.before_step(self.step, batch)
        return self.train_step(batch)

    def _flush(self, recorder: Recorder) -> None:
        """Writes to disk what has to be there before a checkpoint: the records so far, and the text
        embeddings made during training, whose last bits depend on the batch they were made in."""
        recorder.flush_to_disk()
        keep_text(self.pipeline)

    def next_batch(self) -> Batch:
        """The batch of the next step, or what this rank needs of it; the time is counted."""
        began = time.perf_counter()
        whole = self._rows is None or self.signals.need_batch(self.step)
        batch = self.loader.batch(self.step, None if whole else self._rows)
        self._waited += time.perf_counter() - began
        return batch

    def train_step(self, batch: Batch | None = None) -> float:
        """One optimiser step, on its own batch unless one is given; returns the learning rate that
        it took."""
        rate = learning_rate(self.step, self.config.train)
        batch = self.next_batch() if batch is None else batch
        if self._rows is not None and len(batch) > len(self._rows):
            batch = batch.at(self._rows)
        pieces = zip(self.own, batch.split(len(self.own)), strict=True)
        self._examples = [self.objective.draw(part, self._noise(i)) for i, part in pieces]
        self._dropout = [address_seed(*self._address(i), "dropout") for i in self.own]
        inputs = self._prepared()
        scalars = StepScalars(rate, self.ema.share(self.step))
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("rate", 1.0)
        if self.graphed is not None:
            self.graphed(Step(list(inputs), scalars))
        else:
            with self.held.waiting("a step of the cut network"):
                self.step_on_device(Step(inputs, scalars))
        self.step += 1
        return rate

    def capture_steps(self, capture: CudaCapture) -> None:
        """From now on, steps are captured as CUDA graphs and replayed."""
        self.graphed = graphed(self.step_on_device, self.pipeline, capture)

    def _noise(self, piece: int) -> torch.Generator:
        """What all that is random in a piece of the next step's batch is drawn from."""
        return generator(*self._address(piece), device=self.pipeline.device)

    def _address(self, piece: int) -> tuple[int | str, ...]:
        return self.config.seed, "train", self.step, piece

    def _prepared(self) -> Iterator[Any]:
        """The micro-batches of the last step, each prepared when it is asked for."""
        alike = self.graphed is not None
        for example, seed in zip(self._examples, self._dropout, strict=True):
            torch.manual_seed(seed)  # dropout draws from torch's own generator
            for part in example.split(self.microbatches):
                yield self.objective.prepare(part, alike)

    def explain_bad_step(self) -> str:
        """Which losses of the last step were not finite. That step changed no weights, so it can
        be computed again."""
        # One micro-batch at a time, as in a step: `joined` lets go of its graph.
        losses = joined([joined([self.objective.losses(each)]) for each in self._prepared()])
        losses = losses.together(lambda rows: torch.cat(tuple(self.ranks.gather(rows)), dim=1))
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
        with self.held.holding(self.ema.weights), uncompiled():
            return evaluate(self.pipeline)

    def draw_samples(self) -> tuple[Tensor, Sequence[str], dict[str, Any], Tensor | None]:
        """The pictures of this step, (n, c, h, w) uint8, drawn with the averaged weights and the
        same noise every time; their captions, what more there is to say of them, and the pictures
        that are to be shown beside them."""
        sample, (prompts, edit) = self.config.sample, self._shown
        with self.held.holding(self.ema.weights), uncompiled():
            images = self._drawn_in_pieces(prompts, edit)
        settings = sample.model_dump(exclude={"num_samples", "prompts"})
        about = {"step": self.step, "seed": self.config.seed, "prompts": prompts, **settings}
        beside = self.objective.beside(prompts, self.config.seed)
        shown_beside = None if beside is None else to_uint8(beside)
        return *before_and_after(edit, images, prompts), about, shown_beside

    @cached_property
    def _shown(self) -> tuple[Sequence[str], Edit | None]:
        return shown(self.config, self.captions)

    def _drawn_in_pieces(self, prompts: Sequence[str], edit: Edit | None) -> Tensor:
        """The pictures of these prompts, (n, c, h, w) uint8, in as many pieces as a batch has: what
        is drawn together decides of last bits. Ranks share the work; those that have shares of the
        network compute all together, for its calls depend on the captions."""
        sampler = Sampler(self.pipeline, kernels=self.config.train.kernels)
        size = -(-len(prompts) // self.pieces)
        ranks = self.ranks if self.config.parallel.shard == 1 else ALONE

        def piece(first: int) -> Tensor:
            own = range(first, min(first + size, len(prompts)))
            images = sampler.generate(
                prompts[first : first + size],
                seed=self.config.seed,
                first_index=first,
                edit=edit and edit.at(own),
            )
            return to_uint8(images)

        return torch.cat([*ranks.shared(range(0, len(prompts), size), piece)])

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as a checkpoint holds it."""
        module, moments = self.objective.module, self.optimiser.state_dict()
        return {
            "format": checkpoints.FORMAT,
            "step": self.step,
            "images_seen": self.step * self.config.train.batch_size,
            "config": self.config.model_dump(),
            "model": self.pipeline.trained_state(),
            "ema": self._averages(),
            "optimizer": moments | {"state": self._moments(moments["state"], self.held.joined)},
            "data": self.loader.position(self.step),
            "window": self.means.state_dict() | self.guard.state_dict() | self._seen(),
            "metadata": {
                "fluxsmith": __version__,
                "torch": torch.__version__.partition("+")[0],
                "captions": self.captions,
                "autoencoder": self.pipeline.autoencoder.digest,
                "pieces": self.pieces,
                "threads": torch.get_num_threads(),
                "products": backend(self.pipeline.device, self.config.train.kernels),
                "forked_from": self.origin,
                "source": self.pipeline.source,
                **self.pipeline.frozen_metadata(),
                **self.objective.metadata(),
            },
            **({} if module is None else {"objective": module.state_dict()}),
        }

    def _averages(self) -> dict[str, Tensor]:
        return {
            name: self.held.joined(part, self.ema.weights[name])
            for name, part in self.held.parts.named_parameters()
        }

    def _moments(self, of: Mapping[Any, Any], change: Change) -> dict[Any, Any]:
        """The optimiser's state of each parameter, by its number, with every tensor changed."""
        trained = self.update.trained
        return {
            i: {k: change(trained[i], x) if isinstance(x, Tensor) else x for k, x in each.items()}
            for i, each in of.items()
        }

    def place(self, name: str, empty: Tensor) -> Tensor:
        """Where a tensor of a checkpoint in a folder is to be read to, by its dotted name there."""
        kind, _, rest = name.partition(".")
        part: Tensor | None = None
        if kind in ("model", "ema"):
            part = dict(self.held.parts.named_parameters()).get(rest)
        elif name.startswith("optimizer.state."):
            part = dict(enumerate(self.update.trained)).get(int(rest.split(".")[1]))
        return (
            torch.empty_like(empty, device="cpu") if part is None else self.held.empty(part, empty)
        )

    def _seen(self) -> dict[str, Any]:
        """What was looked at and said so far."""
        if not self.signals.looks:
            return {}
        return {"signals": self.signals.state_dict(), "diagnosis": self.diagnosis.state_dict()}

    def load_state_dict(self, state: dict[str, Any], origin: str) -> None:
        """Takes over the state of a checkpoint, so that the next step is the one after it."""
        if not state["optimizer"]:
            raise UserError(
                f"{origin} holds no training state to resume; start from its weights with "
                f"train.init_from={origin}"
            )
        try:
            self.loader.resume(state["data"], state["step"], origin)
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{origin} doesn't say where its data stood: {error}") from None
        check_autoencoder(self.pipeline.autoencoder, state["metadata"], origin)
        self.pipeline.expect_frozen(state["metadata"], origin)
        self._load_average(state["ema"], origin)
        self.pipeline.load_weights(state["model"], origin, load=self.held.load)
        if self.graphed is not None:
            self.graphed.forget()  # they read the optimiser's old state
        try:
            # copied, since AdamW would otherwise go on writing into the mapped file's pages
            moments = self._moments(state["optimizer"]["state"], self.held.share)
            load_optimiser(self.optimiser, copied(state["optimizer"] | {"state": moments}))
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
        self.pipeline.source = state["metadata"].get("source", {})

    def fork(self, state: dict[str, Any], origin: str) -> None:
        """Starts a new run, at step 0, from the averaged weights of a checkpoint."""
        check_autoencoder(self.pipeline.autoencoder, state["metadata"], origin)
        self.pipeline.expect_frozen(state["metadata"], origin)
        self._load_average(state["ema"], origin)
        self.origin = {"checkpoint": origin, "step": state["step"]}
        self.pipeline.source = state["metadata"].get("source", {})

    def _load_average(self, weights: dict[str, Tensor], origin: str) -> None:
        """To the average, and to the model itself, which tells whether they fit."""
        self.pipeline.load_weights(weights, origin, load=self.held.load)
        parts = self.held.parts.named_parameters()
        self.ema.load({name: self.held.share(part, weights[name]) for name, part in parts})


@contextmanager
def _going_on(console: TrainingConsole) -> Iterator[None]:
    """Scores and pictures that can't be had are reported, and training goes on without them."""
    try:
        yield
    except FolderTakenError:
        raise
    except UserError as error:
        console.say(f"{error}; training goes on")


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
