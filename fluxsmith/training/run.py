"""A run from its config: the folder it writes to, where it starts, what it leaves behind."""

import shutil
from pathlib import Path

import torch

from fluxsmith import checkpoint as checkpoints
from fluxsmith.config import RunConfig, show
from fluxsmith.config.comparing import COURSE, check_same
from fluxsmith.config.reading import build_config
from fluxsmith.data import build_loader
from fluxsmith.device import pick_device
from fluxsmith.errors import UserError
from fluxsmith.files import make_folder, write_text
from fluxsmith.flow.timesteps import DENSITIES
from fluxsmith.interop.initial import load_initial
from fluxsmith.pipeline import Pipeline
from fluxsmith.training.console import TrainingConsole
from fluxsmith.training.curves import plot_loss
from fluxsmith.training.interrupt import watch
from fluxsmith.training.metrics import Recorder
from fluxsmith.training.objective import FlowMatching
from fluxsmith.training.trainer import Evaluate, Trainer


def train(
    config: RunConfig,
    resume: str | None = None,
    overwrite: bool = False,
    evaluate: Evaluate | None = None,
) -> int:
    """Trains to the end and returns the exit code: 0, or 128 + the signal that stopped it.

    `resume` is a checkpoint's path, or `auto` for the newest one in the run's folder, if any.
    `overwrite` deletes the run that is in the folder. `evaluate` scores the model on the way.
    """
    folder = Path(config.resolved_output_dir)
    device = pick_device(config.device)
    start = _checkpoint_to_resume(folder, config, resume, overwrite)
    trainer = build_trainer(config, device, evaluate, fresh=start is None)
    if start is not None:
        trainer.load_state_dict(checkpoints.load(start), str(start))

    steps = config.train.steps
    curve = folder / "loss.png"
    with watch() as interrupt, TrainingConsole(steps, trainer.step) as console:
        if start is not None and trainer.step >= steps:
            console.say(f"nothing to do: {start} is at step {trainer.step} of {steps}")
            return 0
        _prepare(folder, config, overwrite)
        _announce(console, config, trainer, start)
        recorder = Recorder(folder, trainer.step)
        try:
            saved = trainer.run(recorder, console, interrupt)
        finally:
            recorder.close()
        if saved is not None:
            plot_loss(folder / "metrics.jsonl", curve, str(config.name))
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
    loader = build_loader(config.data.settings(), config.train.batch_size, config.seed, device)
    pipeline = Pipeline.build(config, device)
    if fresh and config.train.init_from is not None:
        load_initial(pipeline, config.train.init_from)
    pipeline.text.check(loader.captions())
    density = DENSITIES[config.flow.timesteps](**config.flow.parameters())
    objective = FlowMatching(pipeline, density, config.flow.stratified)
    return Trainer(config, pipeline, loader, objective, evaluate)


def _checkpoint_to_resume(
    folder: Path, config: RunConfig, resume: str | None, overwrite: bool
) -> Path | None:
    """The checkpoint that the run starts from; a UserError rather than writing over a run."""
    if resume is not None and overwrite:
        raise UserError("--resume and --overwrite contradict each other; give one of them")
    there = checkpoints.find(folder)
    if resume is None:
        if there and not overwrite:
            raise UserError(
                f"{folder} already holds a run, at step {there[-1][0]}; add --resume auto to "
                f"continue it, --overwrite to start again, or output_dir=... to leave it alone"
            )
        return None
    if resume == "auto":
        path = there[-1][1] if there else None
    else:
        path = checkpoints.newest(Path(resume))
    if path is not None:
        contents = checkpoints.load(path)
        before = build_config(contents["config"], origin=str(path))
        check_same(before, config, COURSE, str(path))
        if there and there[-1][0] > contents["step"]:
            raise UserError(
                f"{folder} holds a checkpoint of step {there[-1][0]}, later than {path}; set "
                f"output_dir to another folder, or move the later ones away"
            )
    return path


def _prepare(folder: Path, config: RunConfig, overwrite: bool) -> None:
    """Makes the folder, empties it of an old run's files if asked to, and writes config.yaml."""
    make_folder(folder, "output_dir")
    patterns = [".diffusion-*.pt.tmp"]  # left by a process that was killed while it saved
    if overwrite:
        patterns += ["diffusion-*.pt", "sample-*.png", "sample-*.txt", "metrics.jsonl", "loss.png"]
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    write_text(folder / "config.yaml", show(config))


def _announce(
    console: TrainingConsole, config: RunConfig, trainer: Trainer, start: Path | None
) -> None:
    console.say(show(config, comments=False))
    network = sum(p.numel() for p in trainer.pipeline.network.parameters())
    text = sum(p.numel() for p in trainer.pipeline.text.parameters())
    console.say(
        f"{config.name}: {network:,} parameters + {text:,} in the text encoder, "
        f"{trainer.loader.describe()}, on {trainer.pipeline.device}"
    )
    where = f"from {start}" if start else "from scratch"
    console.say(f"writing to {trainer.folder}, {where}")
