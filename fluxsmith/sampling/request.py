"""From prompts to files: the grid, the single pictures, the prompts, a filmstrip, an animation.

Every PNG says how to draw it again, and drawing it again gives the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.config.objective_section import FEW_STEPS
from fluxsmith.data.images import to_uint8
from fluxsmith.errors import UserError
from fluxsmith.parallel.ranks import ALONE, Ranks
from fluxsmith.pipeline import Pipeline
from fluxsmith.randomness import generator
from fluxsmith.sampling import render
from fluxsmith.sampling.generate import Drawing, Sampler
from fluxsmith.storage.files import make_folder, write_text
from fluxsmith.storage.shipped import is_shipped
from fluxsmith.version import __version__

CONFIGS = (".yaml", ".yml")


def default_folder(pipeline: Pipeline, source: Path) -> Path:
    """output/image/mnist/flux/diffusion-10.pt -> output/image/mnist/sample/flux; the pictures of a
    config or of a model that ships go beside its run."""
    run = source.parent if source.parent.name else source.absolute().parent
    if source.suffix in CONFIGS or is_shipped(source):
        run = Path(pipeline.config.resolved_output_dir)
    return run.parent / "sample" / run.name


def not_learned(config: RunConfig, steps: int, solver: str, guidance: float) -> str | None:
    """What a student is asked for that it did not learn, in a line; None where there is nothing."""
    learned = config.objective
    if learned.kind in FEW_STEPS and (steps, solver) != (learned.steps, "euler"):
        return (
            f"steps={steps} solver={solver}: this student learned to draw in {learned.steps} steps "
            f"of euler; at other times it guesses"
        )
    if learned.kind == "guidance_distillation":
        low, high = learned.lowest_guidance, learned.highest_guidance
        if guidance != 1 and not low <= guidance <= high:
            return f"guidance={guidance}: this student learned scales of 1 and of {low} to {high}"
    return None


def write_drawing(
    sampler: Sampler,
    drawing: Drawing,
    folder: Path,
    command: str,
    *,
    filmstrip: bool = False,
    gif: bool = False,
    ranks: Ranks = ALONE,
) -> dict[str, Path]:
    """Draws what is planned and writes it into `folder`, named by step and seed; `command` is what
    draws it again. Returns the files by what they are. Of `ranks` all draw, and the first writes:
    the others return nothing."""
    prompts, pipeline = drawing.prompts, sampler.pipeline
    stem = f"sample-{pipeline.step}-seed{drawing.seed}"
    metadata = {
        "software": f"fluxsmith {__version__}",
        "command": command,
        "seed": str(drawing.seed),
        "steps": str(drawing.steps),
        "guidance": repr(drawing.guidance),
        "solver": drawing.solver,
        "model": pipeline.digest(sampler.settings),
    } | _more(drawing)
    ranks.expect_same(metadata | {"prompts": prompts})
    if ranks.first:
        make_folder(folder, "--out")
    trajectory = _Trajectory()
    images = sampler.draw(drawing, trajectory if filmstrip or gif else None, ranks)
    if not ranks.first:
        return {}
    pictures = to_uint8(images)  # (n, c, h, w)
    sheet = render.grid(pictures, prompts)
    grid = folder / f"{stem}.png"
    render.save_png(grid, sheet, metadata | {"prompts": prompts})
    listing = grid.with_suffix(".txt")
    write_text(listing, "".join(f"{_one_line(prompt)}\n" for prompt in prompts))
    singles = _empty_folder(folder / stem)
    for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        own = metadata | {"prompt": prompt, "index": str(i)}
        render.save_png(singles / f"{i:04d}.png", render.to_pil(picture), own)

    written = {"grid": grid, "prompts": listing, "pictures": singles}
    strip, animation = folder / f"{stem}-filmstrip.png", folder / f"{stem}.gif"
    for old in (strip, animation):
        old.unlink(missing_ok=True)  # of an earlier call, perhaps with other prompts
    if filmstrip:
        first = [frame[0] for frame in trajectory.frames]
        film = render.filmstrip(first, trajectory.times)
        render.save_png(strip, film, metadata | {"prompt": prompts[0]})
        written["filmstrip"] = strip
    if gif:
        shown = prompts[: len(trajectory.frames[0])]
        render.save_gif(animation, [render.grid(frame, shown) for frame in trajectory.frames])
        written["animation"] = animation
    return written


def _more(drawing: Drawing) -> dict[str, str]:
    """What metadata says of a drawing that is from a picture, or away from a prompt."""
    found = {}
    if drawing.negative_prompt:
        found["negative_prompt"] = drawing.negative_prompt
    if drawing.true_guidance != 1:
        found["true_guidance"] = repr(drawing.true_guidance)
    if drawing.edit is not None:
        found["edit"] = drawing.edit.digest
        if drawing.edit.strength is not None:
            found["strength"] = repr(drawing.edit.strength)
    return found


def choose_prompts(
    pipeline: Pipeline, given: Sequence[str], num_samples: int | None, seed: int, default: int
) -> list[str]:
    """The prompts as given, repeated in turn for `num_samples`; without any, captions of the data
    set at random, `default` of them if no number is asked for."""
    if num_samples is not None and num_samples < 1:
        raise UserError(f"--num-samples {num_samples}: draw at least 1 picture")
    if given:
        n = len(given) if num_samples is None else num_samples
        if n < len(given):
            raise UserError(
                f"--num-samples {n}: there are {len(given)} prompts; give at least that many "
                f"samples, or fewer prompts"
            )
        return [given[i % len(given)] for i in range(n)]
    if not pipeline.captions:
        raise UserError("there are no captions with this model to draw from; give --prompt")
    n = default if num_samples is None else num_samples
    draws = torch.randint(len(pipeline.captions), (n,), generator=generator(seed, "prompts"))
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
    for path in folder.glob("*.png"):
        if path.stem.isdecimal():
            path.unlink()
    return folder
