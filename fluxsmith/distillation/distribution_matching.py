"""Distribution matching: a student of few steps whose pictures are as likely as its teacher's."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.data.loader import Batch, Loader
from fluxsmith.distillation.critic import Critic
from fluxsmith.distillation.distillation import Distillation, student_times
from fluxsmith.distillation.few_steps import FewStepSettings, check_drawn_in_few_steps
from fluxsmith.distillation.prompts import PromptLoader
from fluxsmith.flow.path import beside, interpolate, velocity_target
from fluxsmith.flow.solvers import euler
from fluxsmith.flow.timesteps import LogitNormal, sample
from fluxsmith.pipeline import Pipeline
from fluxsmith.text.encoder import TextEmbedding, TextInput
from fluxsmith.training.objective import Cost, Losses

TIMES = LogitNormal(mean=0.3, scale=0.7)  # at which the two distributions are compared
LEAST, MOST = 0.02, 0.98  # of these times
DRAWS = 2  # times of each picture that the critic learns at; the first moves the picture


@dataclass(frozen=True)
class Reach:
    """How far a student is moved."""

    part: float  # of the way from a scale of 1 to the teacher's: the scale that is matched
    margin: float  # pixels go outwards up to so many times the bound that drawing clamps them to


ONE_STEP, MORE_STEPS = Reach(0.58, 1.6), Reach(0.51, 1.0)  # one step leaves more pixels grey


@dataclass(frozen=True)
class Matched:
    """Noise with prompts, and how what the student draws of them is to be noised."""

    batch: Batch  # whose images (b, c, h, w) are noise
    t: Tensor  # (b, DRAWS), to which pictures are noised
    eps: Tensor  # (b, DRAWS, c, h, w), with this

    def split(self, parts: int) -> "list[Matched]":
        tensors = self.t.chunk(parts), self.eps.chunk(parts)
        return [Matched(*piece) for piece in zip(self.batch.split(parts), *tensors, strict=True)]


@dataclass(frozen=True)
class Inputs:
    """What the losses are computed from: tensors on the device."""

    noise: Tensor  # (b, c, h, w)
    t: Tensor  # (DRAWS, b)
    eps: Tensor  # (DRAWS, b, c, h, w)
    text: TextInput
    given: TextEmbedding  # the prompts, as the teacher reads them
    null: TextEmbedding  # as many null prompts


class DistributionMatching(Distillation):
    """The student's pictures are moved to where its teacher finds them likelier than a critic does,
    a second network that learns what the student draws.

    With x what the student's steps make of noise, clamped as drawn pixels are, x_t = (1 - t) x +
    t eps, v_T the teacher's velocity and v_C the critic's, all products and norms as means over the
    elements of a picture:

        L = g · x + | v_C(x_t, t) - (eps - x) |^2
        g = t (v_T - v_C),  without a gradient, as x in the last term

    g is how far apart the two guesses of x are. It leads to a smaller divergence between the two
    distributions of x_t: Yin et al. 2024, "One-step Diffusion with Distribution Matching
    Distillation" (DMD), eq. 7 on velocities. Their division by the distance of x from the teacher's
    guess (eq. 8) gained nothing here, and their regression of pairs (eq. 9) cost variety. All steps
    of the student get a gradient, as if nothing had been clamped, but pixels beyond `furthest`
    aren't moved further out.
    """

    terms = ("matching", "critic")

    @dataclass(frozen=True)
    class Settings(FewStepSettings):
        matched_guidance: Annotated[
            float | None,
            Ge(0),
            "Scale to match; unset: 0.51 of the way from 1 to guidance, 0.58 at one step.",
        ] = None
        critic_rate: Annotated[
            float, Gt(0), "The critic's learning rate, as a multiple of train.learning_rate."
        ] = 5.0

    def __init__(self, config: RunConfig, pipeline: Pipeline) -> None:
        scale = config.objective.guidance
        super().__init__(config, pipeline, scale)
        self.matched = _matched_scale(config)
        if self.matched != 1:
            self.teacher.require_null_prompt()
        times = student_times(config, pipeline, config.objective.steps)
        self.times = torch.tensor(times, device=pipeline.device)
        self.bound = pipeline.autoencoder.bound
        self.furthest = _reach(config).margin * self.bound
        self.critic = Critic(self.teacher, config, self.matched)
        self.others = self.teacher.pipeline, self.critic.pipeline
        self.module, self.module_rate = self.critic.trained, config.objective.critic_rate

    @classmethod
    def build(cls, config: RunConfig, pipeline: Pipeline) -> "DistributionMatching":
        check_drawn_in_few_steps(config)
        return cls(config, pipeline)

    @classmethod
    def cost(cls, config: RunConfig) -> Cost:
        """The student's other steps, the critic at its times, and the teacher with and without the
        prompt; one whose scale is an input takes one of these two."""
        trained = config.objective.steps - 1 + DRAWS
        passes = 1 if _matched_scale(config) == 1 else 2
        return Cost(passes=passes, trained=trained, teachers=1, critics=1)

    @classmethod
    def needs_data(cls, config: RunConfig) -> bool:
        return False

    def loader(self) -> Loader:
        return PromptLoader(self.teacher, self.config.train.batch_size, self.config.seed)

    def draw(self, batch: Batch, generator: torch.Generator) -> Matched:
        shape = (len(batch), DRAWS, *batch.images.shape[1:])
        eps = torch.randn(shape, generator=generator, device=generator.device)
        # Spread evenly over the density, and then dealt out: a picture's times have no relation.
        t = sample(TIMES, DRAWS * len(batch), generator, stratified=True).clamp(LEAST, MOST)
        t = t[torch.randperm(len(t), generator=generator, device=t.device)]
        return Matched(batch, t.view(len(batch), DRAWS), eps)

    def prepare(self, example: Matched, alike: bool = False) -> Inputs:
        batch = example.batch
        text = self.pipeline.text.read(batch.captions, room=len(batch) if alike else 0)
        given, null = self.teacher.texts(batch.captions)
        t, eps = example.t.T, example.eps.transpose(0, 1)
        return Inputs(batch.images, t, eps, text, given, null)

    def losses(self, inputs: Inputs) -> Losses:
        x = self._drawn(inputs)
        b, t, made = len(x), inputs.t[0], x.detach()
        drawn = made.clamp(-self.bound, self.bound)
        every = torch.arange(b, device=x.device).repeat(DRAWS)
        at, eps = inputs.t.flatten(), inputs.eps.flatten(0, 1)
        noised = interpolate(drawn[every], eps, at)  # (DRAWS b, c, h, w)
        v_c = self.critic.velocity(noised, at, inputs.given[every])
        error = (v_c - velocity_target(drawn[every], eps)).square().flatten(1).mean(1)
        critic = error.view(DRAWS, b).mean(0)
        x_t, v_c = noised[:b], v_c[:b]
        texts, precision = (inputs.given, inputs.null), self.config.train.precision
        v_t = self.teacher.guided_velocity(x_t, t, texts, self.matched, precision)
        g = beside(t, x) * (v_t - v_c.detach())
        held = (made.abs() > self.furthest) & (made * g < 0)
        target = made - g.masked_fill(held, 0)
        matching = (x - target).square().flatten(1).mean(1) / 2  # whose gradient in x is g
        return Losses(matching + critic, t, {"matching": matching, "critic": critic})

    def _drawn(self, inputs: Inputs) -> Tensor:
        """What the student draws (b, c, h, w), with a gradient through all of its steps."""
        precision = self.config.train.precision
        cond = self.pipeline.embed_text(inputs.text, precision)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return self.pipeline.velocity(x, t, cond, precision=precision)

        return euler(velocity, inputs.noise, self.times)


def _matched_scale(config: RunConfig) -> float:
    """What is matched so that a student draws as its teacher does at `guidance`: a part of the way
    from 1 to it, since matching narrows what is drawn, as guidance does."""
    settings = config.objective
    if settings.matched_guidance is not None:
        return float(settings.matched_guidance)
    return 1 + _reach(config).part * (settings.guidance - 1)


def _reach(config: RunConfig) -> Reach:
    return ONE_STEP if config.objective.steps == 1 else MORE_STEPS
