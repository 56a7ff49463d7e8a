"""A run from its config: the folder it writes to, where it starts, what it leaves behind."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch

from fluxsmith.config import RunConfig, show
from fluxsmith.data import build_loader
from fluxsmith.device import explaining_memory, memory_of, peak_memory, pick_device
from fluxsmith.errors import UserError
from fluxsmith.interop.open_pipeline import load_initial
from fluxsmith.kernels.accelerate import backend, why_plain
from fluxsmith.kernels.compiling import compile_blocks, pays, prepare_compiling
from fluxsmith.model.flops import training_flops
from fluxsmith.parallel.ranks import ALONE, Ranks
from fluxsmith.pipeline import Pipeline, caption_fault, parameters_at_least
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.files import make_folder, write_text
from fluxsmith.training.caption_encoding import keep_text, prepare_text
from fluxsmith.training.console import TrainingConsole, in_words
from fluxsmith.training.curves import plot_loss, plot_signals
from fluxsmith.training.deterministic import deterministic
from fluxsmith.training.division import (
    expect_same_data,
    expect_same_run,
    pieces_of,
    smaller_parts,
)
from fluxsmith.training.holding import build_held
from fluxsmith.training.interrupt import Interrupt, watch
from fluxsmith.training.latent_encoding import open_latents
from fluxsmith.training.lock import FolderLock
from fluxsmith.training.loggers import library
from fluxsmith.training.objective import objective_of
from fluxsmith.training.recorder import NoRecords, Recorder, pictures
from fluxsmith.training.resume import SCRATCH, Start, find_start, refuse_to_write_over
from fluxsmith.training.saving import Saver
from fluxsmith.training.snapshots import FOLDER as SNAPSHOTS
from fluxsmith.training.trainer import Evaluate, Trainer


class Expected(NamedTuple):
    """What a run is expected to take."""

    memory: int  # bytes that this process has at the most
    seconds: float | None  # of a step, where that was tried

    def __str__(self) -> str:
        time = "" if self.seconds is None else f", {self.seconds:.3g} s a step"
        return f"{self.memory / 2**30:.2f} GiB{time}"


Expect = Callable[[Trainer], Expected | None]  # None for a run that is too short to ask

ECHO = 3.0  # seconds in which a signal that a rank gets again is the same one
TRAINING_BYTES = 20  # of a parameter: itself, gradient, average and AdamW's two moments, in float32


def train(
    config: RunConfig,
    resume: str | None = None,
    overwrite: bool = False,
    fork: Path | None = None,
    evaluate: Callable[[], Evaluate | None] = lambda: None,
    ranks: Ranks = ALONE,
    expect: Expect | None = None,
) -> int:
    """Trains to the end and returns the exit code: 0, or 128 + the signal that stopped it.

    `resume` is a checkpoint's path, or `auto` for the newest good one in the run's folder, if any.
    `overwrite` deletes the run that is in the folder. `fork` is a checkpoint from whose averaged
    weights a new run starts, where nothing is resumed. `evaluate` makes what scores the model on
    the way; it is called once it is clear that the run can start.
    `ranks` train together, each by a call of this. `expect` says what memory and time the run will
    take; that is shown before the first step, and once more at the end beside what it took.
    """
    for name in config.train.loggers:
        library(name)  # a UserError now where it is not installed
    folder = Path(config.resolved_output_dir)
    device = ranks.device(pick_device(config.device))
    trying = f"train.batch_size={config.train.batch_size}"
    with (
        FolderLock(folder) as lock,
        deterministic(config.train.deterministic),
        ExitStack() as inside,
    ):
        if ranks.first and folder.is_dir():
            lock.take()
        start = find_start(folder, config, resume, overwrite, fork)
        expect_same_run(config, ranks, start)
        pieces = pieces_of(config, ranks, start.pieces)
        scores = evaluate()
        inside.enter_context(explaining_memory(trying, less_memory(config, pieces)))
        trainer = build_trainer(config, device, scores, start, ranks, pieces)
        expect_same_data(trainer.loader, backend(device, config.train.kernels), ranks)
        with ranks.first_alone():
            others = [*trainer.signals.captions, *(config.sample.prompts or ())]
            of_text = prepare_text(trainer.pipeline, trainer.loader.captions(), others)
        notes = [*start.load_into(trainer), *of_text]
        twice = trainer.objective.second_derivatives
        notes += compile_for_training(trainer.pipeline, trainer.captions, twice)
        with watch(ranks.first, ECHO if ranks.size > 1 else 0.0) as interrupt:
            code = _run(config, trainer, start, lock, overwrite, notes, interrupt, expect)
            ranks.tell(None)  # all end together: torchrun kills those that are left
        return code


def _run(
    config: RunConfig,
    trainer: Trainer,
    start: Start,
    lock: FolderLock,
    overwrite: bool,
    notes: list[str],
    interrupt: Interrupt,
    expect: Expect | None,
) -> int:
    folder, steps, ranks = trainer.folder, config.train.steps, trainer.ranks
    first = ranks.first
    with TrainingConsole(steps, trainer.step) as console:
        if start.resumes and trainer.step >= steps:
            console.say(f"nothing to do: {start.path} is at step {trainer.step} of {steps}")
            if first and not (folder / "loss.png").exists():  # killed after its last checkpoint
                for line in _plot(folder, config):
                    console.say(line)
            return 0
        recorder: Recorder = NoRecords()
        expected = expect(trainer) if expect is not None and first else None
        if first:
            _prepare(folder, config, overwrite, trainer.step, lock)
            for path in start.damaged:
                aside = checkpoints.set_aside(path)
                console.say(f"passed over, and renamed to {aside.name}: {path}")
            _announce(console, config, trainer, start)
            for line in notes:
                console.say(line)
            if expected is not None:
                line = f"plan        {expected}"
                if left := (expected.seconds or 0) * (steps - trainer.step):
                    line += f", {in_words(left)} in all"
                console.say(line)
            named = config.train.loggers
            recorder = Recorder(folder, trainer.step, console.say, named, lock.take)
        status = "FAILED"
        try:
            with Saver(
                folder, config.train, console.say, lock if first else None, ranks, trainer.held
            ) as saver:
                saved = trainer.run(recorder, console, interrupt, saver)
            status = "KILLED" if interrupt and trainer.step < steps else "FINISHED"
        finally:
            keep_text(trainer.pipeline)
            recorder.end(status)
        plots = _plot(folder, config) if first and saved is not None else []
        if expected is not None and trainer.timed:
            took = Expected(peak_memory(trainer.pipeline.device) or 0, trainer.seconds_a_step)
            console.say(f"plan        expected {expected}; took {took}")
    if interrupt and trainer.step < steps:
        if saved is None:
            console.say("stopped before the first step")
        else:
            console.say(f"stopped after step {trainer.step} of {steps}; everything is in {saved}")
            console.say("continue with the same command and --resume auto")
        return interrupt.exit_code
    console.say(f"checkpoint  {saved}")
    for line in plots:
        console.say(line)
    console.say(f"draw with:  fluxsmith sample {saved}")
    return 0


def build_trainer(
    config: RunConfig,
    device: torch.device,
    evaluate: Evaluate | None = None,
    start: Start = SCRATCH,
    ranks: Ranks = ALONE,
    pieces: int | None = None,
) -> Trainer:
    """The trainer of a config at step 0, with its data loaded. Its weights are new, or those of
    train.init_from; where `start` is a checkpoint, they are left for it to bring. `pieces` are
    those of a batch, as many as the config says by default."""
    if config.train.cuda_graphs and device.type != "cuda":
        raise UserError(
            f"train.cuda_graphs=true: needs a CUDA GPU, and this run is on {device}; leave it out"
        )
    _check_size(config, device)
    fault, latents = caption_fault(config), open_latents(config)
    batch_size, seed = config.train.batch_size, config.seed
    kind, loader = objective_of(config), None
    with ranks.first_alone():
        if kind.needs_data(config):
            loader = build_loader(config.data, batch_size, seed, device, fault, latents)
    pipeline, held = build_held(config, ranks, device)
    with ranks.first_alone():
        objective = kind.build(config, pipeline)
    if start.resumes:  # before hours of trajectories are made
        objective.expect(start.contents["metadata"], str(start.path))
    objective.make(ranks)
    fresh = start.path is None
    loader = loader or objective.loader()
    objective.see(loader)
    if fresh and not pipeline.base:
        objective.begin(held.load)
    if fresh and config.train.init_from is not None and not pipeline.base:
        load_initial(pipeline, config.train.init_from, held.load)
    pipeline.text.check(loader.captions())
    try:
        pipeline.text.check(config.sample.prompts or [])
    except UserError as error:
        raise UserError(f"sample.prompts: {error}") from None
    pieces = pieces or pieces_of(config, ranks)
    return Trainer(config, pipeline, loader, objective, evaluate, ranks, pieces, held)


def compile_for_training(pipeline: Pipeline, captions: list[str], twice: bool = False) -> list[str]:
    """Compiles the blocks where train.compile asks for it; returns what there is to say of it.
    `twice`: the loss is of gradients, which compiled code can't be differentiated through."""
    train = pipeline.config.train
    if twice and train.compile is True:
        raise UserError(
            "train.compile=true: compiled code has no second derivatives, which this objective "
            "takes; set train.compile=false"
        )
    spread = pipeline.config.parallel
    alone = spread.shard == 1 and spread.checkpoint_activations == "none"
    alone &= getattr(pipeline.config.data, "buckets", "off") == "off"  # each is a code of its own
    auto = alone and not twice and train.compile == "auto" and _pays(pipeline, captions)
    if not (auto or train.compile is True):
        return []
    if reason := prepare_compiling(pipeline.device):
        return [f"compile     not possible here, so training is slower: {reason}"]
    compile_blocks(pipeline.network)
    return ["compile     the network's blocks, during the first steps (train.compile)"]


def _pays(pipeline: Pipeline, captions: list[str]) -> bool:
    """Whether the run is long enough for compiling, and its captions of few enough lengths."""
    if not captions:
        return False
    with torch.no_grad():
        text = pipeline.encode_text(captions)
    trimmed = getattr(pipeline.config.text, "padding", "trim") == "trim"
    lengths = len(text.mask.sum(dim=1).unique()) if text.mask is not None and trimmed else 1
    image_tokens = pipeline.image_tokens(pipeline.latent_shape)
    each = training_flops(pipeline.network.params, text.tokens.shape[1], image_tokens)
    train = pipeline.config.train
    return pays(pipeline.device, each * train.batch_size * train.steps, lengths)


def _check_size(config: RunConfig, device: torch.device) -> None:
    """Refuses a model that does not fit this machine before it is built, which can take long."""
    parameters, memory = parameters_at_least(config), memory_of(device)
    adapter = config.train.adapter.choice
    each = TRAINING_BYTES if adapter is None else adapter.frozen_bytes
    needed = parameters * each / config.parallel.shard
    if memory and needed > memory:
        raise UserError(
            f"a model of {parameters:,} parameters takes at least {needed / 2**30:,.1f} GiB to "
            f"train, and {device} has {memory / 2**30:,.1f} GiB; make model.hidden_size or "
            f"model.depth smaller"
        )


def _prepare(folder: Path, config: RunConfig, overwrite: bool, step: int, lock: FolderLock) -> None:
    """Makes the folder and writes config.yaml. Deletes what does not belong to this run up to
    `step`: half-written files, pictures of later steps and, with `overwrite`, the run before."""
    make_folder(folder, "output_dir")
    lock.take()
    if step == 0 and not overwrite:
        refuse_to_write_over(folder)  # again: another run may have ended here meanwhile
    patterns = [".diffusion-*.tmp"]  # left by a process that was killed while it saved
    if overwrite:
        patterns += [
            "diffusion-*",
            "metrics.jsonl",
            "loss.png",
            "signals.png",
        ]
        for below in ("tensorboard", SNAPSHOTS):
            shutil.rmtree(folder / below, ignore_errors=True)
    stale = [path for pattern in patterns for path in folder.glob(pattern)]
    for at, picture in pictures(folder):
        if at > step:
            stale += [picture, picture.with_suffix(".txt")]
    stale += (folder / SNAPSHOTS).glob(".diffusion-*.tmp")
    stale += [path for at, path in checkpoints.find(folder / SNAPSHOTS) if at > step]
    for path in stale:
        checkpoints.delete(path)
    write_text(folder / "config.yaml", show(config))


def _plot(folder: Path, config: RunConfig) -> list[str]:
    """Plots the run's records; returns lines that say where the plots are, or why they aren't."""
    metrics, curve, signals = (
        folder / name for name in ("metrics.jsonl", "loss.png", "signals.png")
    )
    told = []
    try:
        plot_loss(metrics, curve, str(config.name))
        told.append(f"loss curve  {curve}")
        if plot_signals(metrics, signals, str(config.name)):
            told.append(f"signals     {signals}")
    except (OSError, UserError) as error:
        told.append(f"no plots    {error}")
    return told


def less_memory(config: RunConfig, pieces: int = 1) -> str:
    """Which settings to change for less memory; first those that leave the result as it is."""
    ways = ["a smaller train.batch_size, model or data.image_size"]
    for more in smaller_parts(config, pieces)[:1]:
        ways.insert(0, f"train.accumulate={more} (the same gradients, a smaller piece at a time)")
    if config.train.cuda_graphs:
        ways.insert(0, "train.cuda_graphs=false")
    return f"set {' or '.join(ways)}"


def _announce(console: TrainingConsole, config: RunConfig, trainer: Trainer, start: Start) -> None:
    console.say(show(config, comments=False))
    network = sum(p.numel() for p in trainer.pipeline.network.parameters())
    text = sum(p.numel() for p in trainer.pipeline.parameters()) - network
    console.say(
        f"{config.name}: {network:,} parameters + {text:,} in the text encoder, "
        f"{trainer.loader.describe()}, on {trainer.pipeline.device}"
    )
    if trainer.pieces > 1:
        console.say(f"{trainer.ranks.size} ranks; batches in {trainer.pieces} pieces")
    if config.train.snapshots and config.parallel.shard > 1:
        console.say("train.snapshots is left out: no rank has all of the model to keep")
    console.say(f"writing to {trainer.folder}, {start}")
    on_cpu = trainer.pipeline.device.type == "cpu"
    if config.train.kernels == "auto" and on_cpu and (reason := why_plain()):
        console.say(f"C++         not possible here, so training is slower: {reason}")
    if config.train.cuda_graphs:
        console.say("CUDA graphs steps are captured as they first come (train.cuda_graphs)")
