"""A run from its config: the folder it writes to, where it starts, what it leaves behind."""

import shutil
from pathlib import Path

import torch

from fluxsmith import checkpoint as checkpoints
from fluxsmith.config import RunConfig, show
from fluxsmith.config.size import TRAINING_BYTES, parameters_at_least
from fluxsmith.data import build_loader
from fluxsmith.data.shard_loader import ShardLoader
from fluxsmith.device import explaining_memory, memory_of, pick_device
from fluxsmith.errors import UserError
from fluxsmith.files import make_folder, write_text
from fluxsmith.flow.timesteps import DENSITIES
from fluxsmith.interop.initial import load_initial
from fluxsmith.model.libraries import slower_because
from fluxsmith.pipeline import Pipeline
from fluxsmith.text.byte_encoder import ByteEncoder
from fluxsmith.training.compiling import compile_for_training
from fluxsmith.training.console import TrainingConsole
from fluxsmith.training.curves import plot_loss
from fluxsmith.training.deterministic import repeatable
from fluxsmith.training.interrupt import watch
from fluxsmith.training.lock import FolderLock, lock_on
from fluxsmith.training.metrics import Recorder, pictures
from fluxsmith.training.objective import FlowMatching
from fluxsmith.training.saving import Saver
from fluxsmith.training.start import Start, find_start, refuse_to_write_over
from fluxsmith.training.text import keep_text, prepare_text
from fluxsmith.training.trainer import Evaluate, Trainer


def train(
    config: RunConfig,
    resume: str | None = None,
    overwrite: bool = False,
    fork: Path | None = None,
    evaluate: Evaluate | None = None,
) -> int:
    """Trains to the end and returns the exit code: 0, or 128 + the signal that stopped it.

    `resume` is a checkpoint's path, or `auto` for the newest good one in the run's folder, if any.
    `overwrite` deletes the run that is in the folder. `fork` is a checkpoint from whose averaged
    weights a new run starts, where nothing is resumed. `evaluate` scores the model on the way.
    """
    folder = Path(config.resolved_output_dir)
    device = pick_device(config.device)
    trying = f"train.batch_size={config.train.batch_size}"
    with (
        lock_on(folder) as lock,
        repeatable(config.train.deterministic),
        explaining_memory(trying, _less_memory(config)),
    ):
        if folder.is_dir():
            lock.take()
        start = find_start(folder, config, resume, overwrite, fork)
        trainer = build_trainer(config, device, evaluate, fresh=start.path is None)
        start = start.load_into(trainer)
        return _run(config, trainer, start, lock, overwrite)


def _run(
    config: RunConfig, trainer: Trainer, start: Start, lock: FolderLock, overwrite: bool
) -> int:
    folder, steps = trainer.folder, config.train.steps
    curve = folder / "loss.png"
    about_text = prepare_text(trainer.pipeline, trainer.loader.captions())
    about_compiling = compile_for_training(trainer.pipeline, trainer.captions)
    with watch() as interrupt, TrainingConsole(steps, trainer.step) as console:
        if start.resumes and trainer.step >= steps:
            console.say(f"nothing to do: {start.path} is at step {trainer.step} of {steps}")
            if not curve.exists():  # killed between the last checkpoint and its end
                _plot(folder, curve, config, console)
            return 0
        _prepare(folder, config, overwrite, trainer.step, lock)
        for path in start.damaged:
            console.say(f"passed over, and renamed to {checkpoints.set_aside(path).name}: {path}")
        _announce(console, config, trainer, start)
        for line in (*about_text, *about_compiling):
            console.say(line)
        recorder = Recorder(folder, trainer.step, console.say)
        try:
            with Saver(folder, config.train, console.say, lock) as saver:
                saved = trainer.run(recorder, console, interrupt, saver)
        finally:
            keep_text(trainer.pipeline)
        if saved is not None:
            _plot(folder, curve, config, console)
    if interrupt and trainer.step < steps:
        if saved is None:
            console.say("stopped before the first step")
        else:
            console.say(f"stopped after step {trainer.step} of {steps}; everything is in {saved}")
            console.say("continue with the same command and --resume auto")
        return interrupt.exit_code
    console.say(f"checkpoint  {saved}")
    console.say(f"loss curve  {curve}")
    console.say(f"draw with:  fluxsmith sample {saved}")
    return 0


def build_trainer(
    config: RunConfig, device: torch.device, evaluate: Evaluate | None = None, fresh: bool = True
) -> Trainer:
    """The trainer of a config at step 0, with its data loaded and its weights new, or those of
    train.init_from; `fresh` is false where a checkpoint brings them anyway."""
    if config.train.cuda_graphs and device.type != "cuda":
        raise UserError(
            f"train.cuda_graphs=true: needs a CUDA GPU, and this run is on {device}; leave it out"
        )
    _check_size(config, device)
    loader = build_loader(config.data.settings(), config.train.batch_size, config.seed, device)
    pipeline = Pipeline.build(config, device)
    if fresh and config.train.init_from is not None:
        load_initial(pipeline, config.train.init_from)
    if isinstance(loader, ShardLoader) and isinstance(pipeline.text, ByteEncoder):
        loader.check_caption = pipeline.text.check  # pretrained encoders cut what is too long
    pipeline.text.check(loader.captions())
    density = DENSITIES[config.flow.timesteps](**config.flow.parameters())
    objective = FlowMatching(pipeline, density, config.flow.stratified)
    return Trainer(config, pipeline, loader, objective, evaluate)


def _check_size(config: RunConfig, device: torch.device) -> None:
    """Refuses a model that can't be trained here before it is built, which may take long."""
    parameters, memory = parameters_at_least(config), memory_of(device)
    needed = parameters * TRAINING_BYTES
    if memory and needed > memory:
        raise UserError(
            f"a model of {parameters:,} parameters takes at least {needed / 2**30:,.1f} GiB to "
            f"train, and {device} has {memory / 2**30:,.1f} GiB; make model.hidden_size or "
            f"model.depth smaller"
        )


def _prepare(folder: Path, config: RunConfig, overwrite: bool, step: int, lock: FolderLock) -> None:
    """Makes the folder and empties it of what is not this run's up to `step`: another run's files
    if asked to, half-written ones, pictures of steps still to come. Writes config.yaml."""
    make_folder(folder, "output_dir")
    lock.take()
    if step == 0 and not overwrite:
        refuse_to_write_over(folder)  # again: another run may have ended here meanwhile
    patterns = [".diffusion-*.pt.tmp"]  # left by a process that was killed while it saved
    if overwrite:
        patterns += ["diffusion-*.pt", "diffusion-*.damaged", "metrics.jsonl", "loss.png"]
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    stale = [path for pattern in patterns for path in folder.glob(pattern)]
    for at, picture in pictures(folder):
        if at > step:
            stale += [picture, picture.with_suffix(".txt")]
    for path in stale:
        path.unlink(missing_ok=True)
    write_text(folder / "config.yaml", show(config))


def _plot(folder: Path, curve: Path, config: RunConfig, console: TrainingConsole) -> None:
    try:
        plot_loss(folder / "metrics.jsonl", curve, str(config.name))
    except (OSError, UserError) as error:
        console.say(f"no loss curve: {error}")


def _less_memory(config: RunConfig) -> str:
    """How to train the same with less memory, else what else to change."""
    size, now = config.train.batch_size, config.train.accumulate
    more = next((n for n in range(now + 1, size + 1) if size % n == 0), None)
    ways = ["a smaller train.batch_size, model or data.image_size"]
    if more is not None:
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
    console.say(f"writing to {trainer.folder}, {start}")
    if trainer.pipeline.device.type == "cpu" and (reason := slower_because()):
        console.say(f"C++         not possible here, so training is slower: {reason}")
    if config.train.cuda_graphs:
        console.say("CUDA graphs steps are captured as they first come (train.cuda_graphs)")
    for warning in start.warnings():
        console.say(warning)
