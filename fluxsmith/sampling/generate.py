"""From prompts to pictures: noise, a grid of times, guidance, a solver, and the autoencoder."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxsmith.config import SampleConfig
from fluxsmith.device import explaining_memory
from fluxsmith.errors import UserError
from fluxsmith.flow.editing import inpaint, shortened
from fluxsmith.flow.guidance import classifier_free, embedded, within_interval
from fluxsmith.flow.path import Velocity, interpolate
from fluxsmith.flow.solvers import SCHEDULES, SOLVERS, Noise
from fluxsmith.flow.solvers import OnStep as SolverStep
from fluxsmith.kernels.accelerate import accelerated
from fluxsmith.kernels.compiling import compiled
from fluxsmith.kernels.cuda_graphs import CudaCapture
from fluxsmith.kernels.offload import is_offloaded
from fluxsmith.pipeline import Pipeline
from fluxsmith.randomness import image_noise
from fluxsmith.sampling.edit import Edit
from fluxsmith.sampling.graphed_velocity import GraphedVelocity
from fluxsmith.text.encoder import NULL_PROMPT, TextEmbedding

# Called with (step, t, images): step 0 is the noise, and the images are decoded, unclamped.
OnStep = Callable[[int, float, Tensor], None]

TOKENS_AT_ONCE = 4096  # image tokens of the pictures that are drawn together, by default

# Guidance evaluates its two velocities in one batch of twice the size, up to so many tokens of
# image and text; a larger batch no longer fits the caches, and two are quicker. The second number
# is for captions longer than the empty prompt, which is then padded to their length.
JOINT_TOKENS = 2048, 320


@dataclass(frozen=True)
class Drawing:
    """Pictures to draw, one a prompt, with every setting resolved and checked."""

    prompts: Sequence[str]
    steps: int
    guidance: float
    solver: str
    seed: int
    size: tuple[int, int]  # (height, width) in pixels
    edit: Edit | None = None
    first_index: int = 0  # of the first picture, by which its noise is addressed
    batch_size: int | None = None


class Sampler:
    """Draws with one model. `settings` are those of the model's config unless others are given.

    `kernels` is auto or off; `compile` compiles the network for full batches, which pays for
    thousands of pictures; `cuda_graphs` captures it, which pays for small networks on a GPU, with
    a capture of one's own in place of true.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        settings: SampleConfig | None = None,
        *,
        kernels: str = "auto",
        compile: bool = False,  # noqa: A002 (the option's name)
        cuda_graphs: bool | CudaCapture = False,
    ) -> None:
        self.pipeline = pipeline
        self.settings = settings or pipeline.config.sample
        self.kernels = kernels
        self.compile = compile
        self.joint_tokens = JOINT_TOKENS
        precision = self.settings.precision
        self._velocity: Callable[..., Tensor] = partial(pipeline.velocity, precision=precision)
        if (compile or cuda_graphs) and is_offloaded(pipeline.network):
            option = "--compile" if compile else "--cuda-graphs"
            raise UserError(f"{option} needs blocks that stay on the device; add --offload none")
        if isinstance(cuda_graphs, bool) and cuda_graphs:
            if pipeline.device.type != "cuda":
                raise UserError(
                    f"--cuda-graphs needs a CUDA GPU, and this is {pipeline.device}; leave it out"
                )
            cuda_graphs = CudaCapture(pipeline.device)
        if cuda_graphs:
            self._velocity = GraphedVelocity(pipeline, precision, cuda_graphs)

    def generate(
        self, prompts: Sequence[str], *, on_step: OnStep | None = None, **settings: Any
    ) -> Tensor:
        """One picture a prompt: (n, c, h, w) in [-1, 1], on the CPU; `plan` names the settings.

        Picture i starts from the noise addressed by (seed, first_index + i), so it does not depend
        on what is drawn beside it. `on_step` sees the pictures of one batch at a time. Raises a
        UserError for settings that can't be used.
        """
        return self.draw(self.plan(prompts, **settings), on_step)

    def plan(
        self,
        prompts: Sequence[str],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        solver: str | None = None,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        edit: Edit | None = None,
        first_index: int = 0,
        batch_size: int | None = None,
    ) -> Drawing:
        """What `draw` takes: what is left out is the settings', `size` the config's (height,
        width). Raises a UserError that names the first setting that can't be used."""
        drawing = Drawing(
            [prompts] if isinstance(prompts, str) else prompts,
            self.settings.steps if steps is None else steps,
            self.settings.guidance if guidance is None else guidance,
            solver or self.settings.solver,
            seed,
            size or (self.pipeline.config.data.image_size,) * 2,
            edit,
            first_index,
            batch_size,
        )
        self._check(drawing)
        return drawing

    @torch.no_grad()
    def draw(self, drawing: Drawing, on_step: OnStep | None = None) -> Tensor:
        """The pictures of a plan, as `generate` returns them."""
        pipeline, prompts = self.pipeline, drawing.prompts
        shape = pipeline.latent_shape_of(*drawing.size)
        tokens = pipeline.image_tokens(shape)
        ts = SCHEDULES[self.settings.schedule](drawing.steps, tokens)
        at_once = drawing.batch_size or min(64, max(1, TOKENS_AT_ONCE // tokens))
        at_once = min(at_once, len(prompts))
        fewer = "draw fewer at once (--num-samples, or batch_size in Python), or smaller ones"
        pictures = []
        with (
            self.evaluating(),
            self._accelerated(drawing, at_once),
            explaining_memory(f"{at_once} pictures at once", fewer),
        ):
            for start in range(0, len(prompts), at_once):
                part = prompts[start : start + at_once]
                first = drawing.first_index + start
                indices = range(first, first + len(part))

                def noise(step: int | None, indices: range = indices) -> Tensor:
                    return image_noise(shape, drawing.seed, indices, step).to(pipeline.device)

                cond = pipeline.encode_text(part, self.settings.precision)
                velocity = self.guided_velocity(cond, drawing.guidance)
                full = self.compile and len(part) == at_once
                with compiled(pipeline.network) if full else nullcontext():
                    x = self._solve(drawing, velocity, noise(None), ts, noise, on_step)
                pictures.append(pipeline.autoencoder.decode(x).clamp(-1, 1).cpu())
        return torch.cat(pictures)

    def guided_velocity(self, cond: TextEmbedding, guidance: float) -> Velocity:
        """The velocity that a solver follows for these prompts at this guidance scale."""
        settings, pipeline = self.settings, self.pipeline

        def velocity(x: Tensor, t: Tensor, on: TextEmbedding, scale: float = 1.0) -> Tensor:
            return self._velocity(x, t, on, scale)

        if settings.guidance_method == "embedded":
            return embedded(lambda x, t, scale: velocity(x, t, cond, scale), guidance)

        def conditional(x: Tensor, t: Tensor) -> Tensor:
            return velocity(x, t, cond)

        if guidance == 1:
            return conditional
        null = pipeline.encode_text([NULL_PROMPT], settings.precision).expand(len(cond))
        text = max(cond.tokens.shape[1], null.tokens.shape[1])
        padded = cond.tokens.shape[1] != null.tokens.shape[1]
        most = self.joint_tokens[1] if padded else self.joint_tokens[0]

        def unconditional(x: Tensor, t: Tensor) -> Tensor:
            return velocity(x, t, null)

        @cache  # for every step, once one asks for it
        def joined() -> TextEmbedding:
            return cond.followed_by(null)

        def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            b, c, height, width = x.shape
            if b * (pipeline.image_tokens((c, height, width)) + text) > most:
                return conditional(x, t), unconditional(x, t)
            times = t.repeat(2) if t.ndim else t
            v_c, v_u = velocity(torch.cat((x, x)), times, joined()).chunk(2)
            return v_c, v_u

        guided = classifier_free(conditional, unconditional, guidance, both)
        return within_interval(guided, conditional, *settings.guidance_interval)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the model is in eval mode and computes by our kernels; then as before."""
        training = self.pipeline.training
        self.pipeline.eval()
        try:
            with nullcontext() if self.kernels == "off" else accelerated(self.pipeline.network):
                yield
        finally:
            self.pipeline.train(training)

    def _solve(
        self,
        drawing: Drawing,
        velocity: Velocity,
        eps: Tensor,
        ts: Tensor,
        noise: Noise,
        on_step: OnStep | None,
    ) -> Tensor:
        """From noise (b, c, h, w) at ts[0] = 1 to latents, or from the picture of an edit."""
        solver, edit = SOLVERS[drawing.solver].function, drawing.edit
        report = self._decoded(on_step) if on_step is not None else None
        if edit is None:
            return solver(velocity, eps, ts, report, noise)
        x0 = self.pipeline.autoencoder.encode(edit.image[None].to(eps.device))  # (1, c, h, w)
        ts = shortened(ts, edit.strength)
        if edit.mask is None:
            return solver(velocity, interpolate(x0, eps, ts[0]), ts, report, noise)
        mask = F.interpolate(edit.mask[None].to(x0), eps.shape[2:])  # nearest: (1, 1, h, w)
        return inpaint(solver, velocity, x0, eps, mask, ts, report, noise)

    def _decoded(self, on_step: OnStep) -> SolverStep:
        def report(step: int, t: Tensor, x: Tensor) -> None:
            on_step(step, float(t), self.pipeline.autoencoder.decode(x))

        return report

    def _accelerated(self, drawing: Drawing, at_once: int) -> AbstractContextManager[None]:
        """Inside, the network computes by our kernels; where they are off, it stays as it is."""
        if self.kernels == "off":
            return nullcontext()
        evaluations = self._evaluations(drawing, at_once)
        return accelerated(self.pipeline.network, self.kernels, evaluations)

    def _evaluations(self, drawing: Drawing, at_once: int) -> int:
        """The least number of the network's forward passes."""
        strength = 1.0 if drawing.edit is None else drawing.edit.strength
        each = SOLVERS[drawing.solver].evaluations(max(1, math.ceil(drawing.steps * strength)))
        return each * math.ceil(len(drawing.prompts) / at_once)

    def _check(self, drawing: Drawing) -> None:
        if drawing.solver not in SOLVERS:
            raise UserError(f"solver={drawing.solver}: must be one of {', '.join(SOLVERS)}")
        if drawing.steps < 1:
            raise UserError(f"steps={drawing.steps}: sampling needs at least 1")
        if not math.isfinite(drawing.guidance):
            raise UserError(f"guidance={drawing.guidance}: must be a finite number")
        if drawing.batch_size is not None and drawing.batch_size < 1:
            raise UserError(f"batch_size={drawing.batch_size}: must be at least 1")
        unit = self.pipeline.size_unit
        for name, pixels in zip(("height", "width"), drawing.size, strict=True):
            if pixels < unit or pixels % unit:
                below = max(unit, pixels - pixels % unit)
                raise UserError(
                    f"{name}={pixels}: must be a multiple of {unit}, such as {below} or "
                    f"{below + unit}"
                )
        if drawing.edit is not None:
            drawing.edit.check(drawing.size)
        if not drawing.prompts:
            raise UserError("there is no prompt to draw; give at least one")
        self.pipeline.text.check(drawing.prompts)


class TextToImage(Pipeline):
    """A model that draws: what `from fluxsmith import Pipeline` gives."""

    def generate(
        self, prompts: Sequence[str], *, on_step: OnStep | None = None, **settings: Any
    ) -> Tensor:
        """One picture a prompt: (n, c, h, w) in [-1, 1], on the CPU.

        The settings are `steps`, `guidance`, `solver`, `seed`, `size` (height, width), `edit`,
        `first_index` and `batch_size`; see `Sampler.generate`.
        """
        return Sampler(self).generate(prompts, on_step=on_step, **settings)
