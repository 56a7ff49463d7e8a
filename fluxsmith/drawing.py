"""From prompts to files: the grid, the single pictures, the prompts, a filmstrip, an animation.

Every PNG says how to draw it again, and drawing it again gives the same bytes.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import torch
from torch import Tensor

from fluxsmith import render
from fluxsmith.data.images import to_uint8
from fluxsmith.errors import UserError
from fluxsmith.files import make_folder, write_text
from fluxsmith.pipeline import Edit, Pipeline
from fluxsmith.randomness import generator
from fluxsmith.version import __version__


@dataclass(frozen=True)
class Request:
    """What to draw. The number of pictures is `num_samples`, or one a prompt."""

    checkpoint: Path
    prompts: Sequence[str] = ()  # none: captions of the data set, at random
    num_samples: int | None = None
    steps: int = 20
    guidance: float = 2.0
    solver: str = "euler"
    seed: int = 0
    weights: str = "ema"
    size: tuple[int, int] | None = None  # (height, width) in pixels; None: the config's
    batch_size: int | None = None
    edit: Edit | None = None
    options: Mapping[str, str] = field(default_factory=dict)  # more that the command was given
    filmstrip: bool = False
    gif: bool = False
    device: str = "auto"
    config: Path | None = None
    where: Sequence[str] = ()  # KEY=VALUE: where files lie on this machine
    compiles: bool = False  # only said in the command, as is the next; the pipeline does it
    graphs: bool = False

    def command(self) -> str:
        """The command that draws this again."""
        words = ["fluxsmith", "sample", str(self.checkpoint)]
        for prompt in self.prompts:
            words += ["--prompt", prompt]
        if self.num_samples is not None:
            words += ["--num-samples", str(self.num_samples)]
        words += ["--steps", str(self.steps), "--guidance", repr(self.guidance)]
        words += ["--solver", self.solver, "--seed", str(self.seed), "--weights", self.weights]
        words += ["--filmstrip"] * self.filmstrip + ["--gif"] * self.gif
        words += ["--compile"] * self.compiles + ["--cuda-graphs"] * self.graphs
        for option, value in self.options.items():
            words += [option, value]
        if self.device != "auto":
            words += ["--device", self.device]
        if self.config is not None:
            words += ["--config", str(self.config)]
        for setting in self.where:
            words += ["--set", setting]
        return shlex.join(words)


@dataclass(frozen=True)
class Drawn:
    """The files that were written."""

    grid: Path
    prompts: Path
    pictures: Path  # a folder
    filmstrip: Path | None
    gif: Path | None


def default_folder(pipeline: Pipeline, checkpoint: Path) -> Path:
    """output/image/mnist/flux -> output/image/mnist/sample/flux.

    The run's folder is the one that its config names. A checkpoint may come from anybody, so a
    folder outside the one at hand is believed only where the checkpoint itself lies in it; else
    the pictures go beside the checkpoint.
    """
    run = PurePath(pipeline.config.resolved_output_dir)
    here = checkpoint.absolute().parent
    if (run.is_absolute() or ".." in run.parts) and Path(run).absolute() != here:
        run = here
    return Path(run.parent / "sample" / run.name)


def draw(pipeline: Pipeline, request: Request, folder: Path) -> Drawn:
    """Draws what is asked for and writes it into `folder`, named by step and seed."""
    prompts = check_request(pipeline, request)
    make_folder(folder, "--out")
    trajectory = _Trajectory()
    images = pipeline.generate(
        prompts,
        steps=request.steps,
        guidance=request.guidance,
        solver=request.solver,
        seed=request.seed,
        size=request.size,
        edit=request.edit,
        batch_size=request.batch_size,
        on_step=trajectory if request.filmstrip or request.gif else None,
    )
    pictures = to_uint8(images)  # (n, c, h, w)

    stem = f"sample-{pipeline.step}-seed{request.seed}"
    metadata = {
        "software": f"fluxsmith {__version__}",
        "command": request.command(),
        "seed": str(request.seed),
        "steps": str(request.steps),
        "guidance": repr(request.guidance),
        "solver": request.solver,
        "model": pipeline.digest(),
    }
    sheet = render.grid(pictures, prompts)
    grid = folder / f"{stem}.png"
    render.save_png(grid, sheet, metadata | {"prompts": prompts})
    listing = grid.with_suffix(".txt")
    write_text(listing, "".join(f"{_one_line(prompt)}\n" for prompt in prompts))
    singles = _empty_folder(folder / stem)
    for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        own = metadata | {"prompt": prompt, "index": str(i)}
        render.save_png(singles / f"{i:04d}.png", render.to_pil(picture), own)

    for old in (folder / f"{stem}-filmstrip.png", folder / f"{stem}.gif"):
        old.unlink(missing_ok=True)  # of an earlier call, perhaps with other prompts
    strip = folder / f"{stem}-filmstrip.png" if request.filmstrip else None
    if strip is not None:
        first = [frame[0] for frame in trajectory.frames]
        render.save_png(
            strip, render.filmstrip(first, trajectory.times), metadata | {"prompt": prompts[0]}
        )
    gif = folder / f"{stem}.gif" if request.gif else None
    if gif is not None:
        shown = prompts[: len(trajectory.frames[0])]
        render.save_gif(gif, [render.grid(frame, shown) for frame in trajectory.frames])
    return Drawn(grid, listing, singles, strip, gif)


def check_request(pipeline: Pipeline, request: Request) -> list[str]:
    """The prompts that will be drawn, one a picture. Raises a UserError for what can't be drawn."""
    prompts = choose_prompts(pipeline, request)
    pipeline.check_drawable(
        prompts, request.steps, request.guidance, request.solver, request.size, request.edit
    )
    return prompts


def choose_prompts(pipeline: Pipeline, request: Request) -> list[str]:
    """The prompts as given, repeated in turn for `num_samples`; without any, captions at random."""
    n = request.num_samples
    if n is not None and n < 1:
        raise UserError(f"--num-samples {n}: draw at least 1 picture")
    if request.prompts:
        n = len(request.prompts) if n is None else n
        if n < len(request.prompts):
            raise UserError(
                f"--num-samples {n}: there are {len(request.prompts)} prompts; give at least that "
                f"many samples, or fewer prompts"
            )
        return [request.prompts[i % len(request.prompts)] for i in range(n)]
    if not pipeline.captions:
        raise UserError("there are no captions with this model to draw from; give --prompt")
    n = pipeline.config.sample.num_samples if n is None else n
    draws = torch.randint(
        len(pipeline.captions), (n,), generator=generator(request.seed, "prompts")
    )
    return [pipeline.captions[i] for i in draws.tolist()]


class _Trajectory:
    """The first batch's pictures at every step, noise first."""

    def __init__(self) -> None:
        self.frames: list[Tensor] = []  # (b, c, h, w) uint8 each
        self.times: list[float] = []
        self._complete = False

    def __call__(self, step: int, t: float, images: Tensor) -> None:
        self._complete |= step == 0 and bool(self.frames)  # a second batch begins
        if not self._complete:
            self.frames.append(to_uint8(images.clamp(-1, 1)).cpu())
            self.times.append(t)


def _one_line(prompt: str) -> str:
    return prompt.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")


def _empty_folder(folder: Path) -> Path:
    """The folder, without the single pictures of an earlier call."""
    make_folder(folder, "--out")
    for path in folder.glob("[0-9][0-9][0-9][0-9].png"):
        path.unlink()
    return folder
