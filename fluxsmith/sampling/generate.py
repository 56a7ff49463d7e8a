"""From prompts to pictures: noise, a grid of times, guidance, a solver, and the autoencoder."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from unicodedata import normalize

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxsmith.autoencoder.conditioning import ImageCondition
from fluxsmith.config import SampleConfig
from fluxsmith.device import explaining_memory
from fluxsmith.errors import UserError
from fluxsmith.flow.editing import inpaint, shortened
from fluxsmith.flow.guidance import classifier_free, within_interval
from fluxsmith.flow.path import Velocity, interpolate
from fluxsmith.flow.solvers import SOLVERS, Noise
from fluxsmith.flow.solvers import OnStep as SolverStep
from fluxsmith.kernels.accelerate import accelerated
from fluxsmith.kernels.compiling import compiled
from fluxsmith.kernels.cuda_graphs import CudaCapture
from fluxsmith.kernels.offload import is_offloaded
from fluxsmith.parallel.ranks import ALONE, Ranks
from fluxsmith.pipeline import Pipeline
from fluxsmith.randomness import image_noise
from fluxsmith.sampling.edit import Edit, strength_of
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
    negative_prompt: str = NULL_PROMPT  # what classifier-free guidance leads away from
    true_guidance: float = 1.0  # its scale beside an embedded one; 1 is off
    one_noise: bool = False  # every picture starts from that of the first


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
        self.schedule = self.settings.choice  # (steps, image tokens) -> times
        self.kernels = kernels
        self.compile = compile
        self.conditioning = pipeline.config.model.conditioning
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
        negative_prompt: str = NULL_PROMPT,
        true_guidance: float = 1.0,
        one_noise: bool = False,
    ) -> Drawing:
        """What `draw` takes: what is left out is the settings', `size` the config's (height,
        width). Raises a UserError that names the first setting that can't be used."""
        prompts = [prompts] if isinstance(prompts, str) else prompts
        drawing = Drawing(
            [normalize("NFC", prompt) for prompt in prompts],  # accents as captions have them
            self.settings.steps if steps is None else steps,
            self.settings.guidance if guidance is None else guidance,
            solver or self.settings.solver,
            seed,
            size or (self.pipeline.config.data.image_size,) * 2,
            edit,
            first_index,
            batch_size,
            normalize("NFC", negative_prompt),
            true_guidance,
            one_noise,
        )
        _check(drawing, self.pipeline, self.settings)
        try:
            self.schedule(drawing.steps, self._image_tokens(drawing))
        except ValueError as error:
            raise UserError(f"sample.{error}") from None
        return drawing

    @torch.no_grad()
    def draw(self, drawing: Drawing, on_step: OnStep | None = None, ranks: Ranks = ALONE) -> Tensor:
        """The pictures of a plan, as `generate` returns them. Batches are shared out over `ranks`;
        `on_step` sees those of this one, and the first batch is the first rank's."""
        pipeline, prompts = self.pipeline, drawing.prompts
        shape, tokens = pipeline.latent_shape_of(*drawing.size), self._image_tokens(drawing)
        ts = self.schedule(drawing.steps, tokens)
        at_once = drawing.batch_size or min(64, max(1, TOKENS_AT_ONCE // tokens))
        at_once = min(at_once, len(prompts))
        fewer = "draw fewer at once (--num-samples, or batch_size in Python), or smaller ones"

        @explaining_memory(f"{at_once} pictures at once", fewer)
        def batch(start: int) -> Tensor:
            part = prompts[start : start + at_once]
            rows = range(start, start + len(part))
            edit = drawing.edit and drawing.edit.at(rows).on(pipeline.device)
            first = drawing.first_index + start
            indices = [*range(first, first + len(part))]
            if drawing.one_noise:
                indices = [drawing.first_index] * len(part)

            def noise(step: int | None) -> Tensor:
                return image_noise(shape, drawing.seed, indices, step).to(pipeline.device)

            velocity = self.guided_velocity(
                pipeline.encode_text(part, self.settings.precision),
                drawing.guidance,
                None if edit is None else pipeline.image_condition(edit.image, edit.hole),
                drawing.negative_prompt,
                drawing.true_guidance,
            )
            full = self.compile and len(part) == at_once
            with compiled(pipeline.network) if full else nullcontext():
                x = self._solve(drawing, edit, velocity, noise(None), ts, noise, on_step)
            drawn = pipeline.autoencoder.decode(x).clamp(-1, 1)
            return (edit.pasted(drawn) if edit else drawn).cpu()

        with self.evaluating(), self._accelerated(drawing, at_once):
            starts = range(0, len(prompts), at_once)
            alone = ranks.size == 1
            return torch.cat([*(map(batch, starts) if alone else ranks.shared(starts, batch))])

    def _image_tokens(self, drawing: Drawing) -> int:
        return self.pipeline.image_tokens(self.pipeline.latent_shape_of(*drawing.size))

    def guided_velocity(
        self,
        cond: TextEmbedding,
        guidance: float,
        image_cond: ImageCondition | None = None,
        negative_prompt: str = NULL_PROMPT,
        true_guidance: float = 1.0,
    ) -> Velocity:
        """The velocity that a solver follows for these prompts at this guidance scale. Where the
        network takes that as an input (Meng et al. 2023, "On Distillation of Guided Diffusion
        Models", sec. 3.1), classifier-free guidance may come on top, at a scale of its own."""
        settings, pipeline = self.settings, self.pipeline
        embedded = settings.guidance_method == "embedded"
        fed, scale = (guidance, true_guidance) if embedded else (1.0, guidance)

        def velocity(
            x: Tensor, t: Tensor, on: TextEmbedding, given: ImageCondition | None = image_cond
        ) -> Tensor:
            return self._velocity(x, t, on, fed, image_cond=given)

        def conditional(x: Tensor, t: Tensor) -> Tensor:
            return velocity(x, t, cond)

        if scale == 1:
            return conditional
        negative = pipeline.encode_text([negative_prompt], settings.precision).expand(len(cond))
        more = max(cond.tokens.shape[1], negative.tokens.shape[1])
        if image_cond is not None and image_cond.reference is not None:
            _, c, height, width = image_cond.reference.shape
            more += pipeline.image_tokens((c, height, width))
        padded = cond.tokens.shape[1] != negative.tokens.shape[1]
        most = self.joint_tokens[1] if padded else self.joint_tokens[0]

        def unconditional(x: Tensor, t: Tensor) -> Tensor:
            return velocity(x, t, negative)

        @cache  # for every step, once one asks for it
        def joined() -> tuple[TextEmbedding, ImageCondition | None]:
            return cond.followed_by(negative), image_cond and image_cond.repeated(2)

        def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            b, c, height, width = x.shape
            if b * (pipeline.image_tokens((c, height, width)) + more) > most:
                return conditional(x, t), unconditional(x, t)
            times = t.repeat(2) if t.ndim else t
            v_c, v_u = velocity(torch.cat((x, x)), times, *joined()).chunk(2)
            return v_c, v_u

        guided = classifier_free(conditional, unconditional, scale, both)
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
        edit: Edit | None,
        velocity: Velocity,
        eps: Tensor,
        ts: Tensor,
        noise: Noise,
        on_step: OnStep | None,
    ) -> Tensor:
        """From noise (b, c, h, w) at ts[0] = 1 to latents, or from the pictures of an edit."""
        solver, conditioning = SOLVERS[drawing.solver].function, self.conditioning
        report = self._decoded(on_step, edit) if on_step is not None else None
        if edit is None or conditioning == "kontext":
            return solver(velocity, eps, ts, report, noise)
        x0 = self.pipeline.autoencoder.encode(edit.image)  # (b or 1, c, h, w)
        ts = shortened(ts, strength_of(edit, conditioning))
        if edit.hole is None or conditioning == "fill":
            return solver(velocity, interpolate(x0, eps, ts[0]), ts, report, noise)
        # A latent any of whose pixels is drawn anew is drawn anew: (b or 1, 1, h, w)
        mask = F.max_pool2d(edit.hole, self.pipeline.autoencoder.factor)
        return inpaint(solver, velocity, x0, eps, mask, ts, report, noise)

    def _decoded(self, on_step: OnStep, edit: Edit | None) -> SolverStep:
        def report(step: int, t: Tensor, x: Tensor) -> None:
            drawn = self.pipeline.autoencoder.decode(x)
            on_step(step, float(t), edit.pasted(drawn) if edit and t == 0 else drawn)

        return report

    def _accelerated(self, drawing: Drawing, at_once: int) -> AbstractContextManager[None]:
        """Inside, the network computes by our kernels; where they are off, it stays as it is."""
        if self.kernels == "off":
            return nullcontext()
        evaluations = self._evaluations(drawing, at_once)
        return accelerated(self.pipeline.network, self.kernels, evaluations)

    def _evaluations(self, drawing: Drawing, at_once: int) -> int:
        """The least number of the network's forward passes."""
        edit = drawing.edit
        strength = 1.0 if edit is None else strength_of(edit, self.conditioning)
        each = SOLVERS[drawing.solver].evaluations(max(1, math.ceil(drawing.steps * strength)))
        return each * math.ceil(len(drawing.prompts) / at_once)


def check_size(size: tuple[int, int], unit: int) -> None:
    """Raises a UserError for a (height, width) that is not made of whole tokens."""
    for name, pixels in zip(("height", "width"), size, strict=True):
        if pixels < unit or pixels % unit:
            below = max(unit, pixels - pixels % unit)
            raise UserError(
                f"{name}={pixels}: must be a multiple of {unit}, such as {below} or {below + unit}"
            )


def _check(drawing: Drawing, pipeline: Pipeline, settings: SampleConfig) -> None:
    """Raises a UserError that names the first thing that can't be drawn with this model."""
    if drawing.solver not in SOLVERS:
        raise UserError(f"solver={drawing.solver}: must be one of {', '.join(SOLVERS)}")
    if drawing.steps < 1:
        raise UserError(f"steps={drawing.steps}: sampling needs at least 1")
    for key in ("guidance", "true_guidance"):
        if not math.isfinite(value := getattr(drawing, key)):
            raise UserError(f"{key}={value}: must be a finite number")
    in_weights = "none" in (settings.guidance_method, pipeline.config.sample.guidance_method)
    if drawing.guidance != 1 and in_weights:
        raise UserError(
            f"guidance={drawing.guidance}: this model has its guidance in its weights; leave it out"
        )
    _check_negative(drawing, settings)
    if drawing.batch_size is not None and drawing.batch_size < 1:
        raise UserError(f"batch_size={drawing.batch_size}: must be at least 1")
    check_size(drawing.size, pipeline.size_unit)
    conditioning = pipeline.config.model.conditioning
    if drawing.edit is not None:
        drawing.edit.check(conditioning, drawing.size, len(drawing.prompts))
    elif conditioning != "text":
        what = "--init-image and --mask" if conditioning == "fill" else "--init-image"
        raise UserError(
            f"this model draws from a picture (model.conditioning={conditioning}): give "
            f"{what} (in Python an edit)"
        )
    if not drawing.prompts:
        raise UserError("there is no prompt to draw; give at least one")
    pipeline.text.check(drawing.prompts)
    try:
        pipeline.text.check([drawing.negative_prompt])
    except UserError as error:
        raise UserError(f"negative prompt: {error}") from None


def _check_negative(drawing: Drawing, settings: SampleConfig) -> None:
    embedded = settings.guidance_method == "embedded"
    if not embedded and drawing.true_guidance != 1:
        raise UserError(
            f"true_guidance={drawing.true_guidance}: is for models that take their guidance as "
            f"an input; this one's own is classifier-free: set guidance"
        )
    scale = drawing.true_guidance if embedded else drawing.guidance
    if drawing.negative_prompt != NULL_PROMPT and scale == 1:
        key = "true_guidance" if embedded else "guidance"
        raise UserError(
            f"negative_prompt={drawing.negative_prompt!r}: nothing leads away from it at "
            f"{key}=1; set {key} above 1"
        )
