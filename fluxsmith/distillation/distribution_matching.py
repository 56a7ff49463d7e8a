"""Distribution matching: a student of few steps whose pictures are as likely as its teacher's."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.data.loader import Batch
from fluxsmith.distillation.critic import Critic
from fluxsmith.distillation.few_steps import FewSteps, states_of_steps
from fluxsmith.distillation.trajectories import Recipe, Trajectories
from fluxsmith.flow.path import beside, interpolate, velocity_target, x0_from_velocity
from fluxsmith.flow.timesteps import LogitNormal, sample
from fluxsmith.pipeline import Pipeline
from fluxsmith.text.encoder import TextEmbedding, TextInput
from fluxsmith.training.objective import Losses

MATCHED = 0.8  # of the teacher's scale beyond 1: matching narrows what is drawn, as guidance does
TIMES = LogitNormal()  # at which the two distributions are compared: middle ones, for all teachers
LEAST, MOST = 0.02, 0.98  # of these times
DRAWS = 2  # times of each picture that the critic learns at; the first moves the picture
LEAST_DISTANCE = 1e-3  # of a picture from the teacher's guess, that a difference is divided by


@dataclass(frozen=True)
class Matched:
    """Trajectories, and as many pictures to be drawn of fresh noise with the same prompts."""

    batch: Trajectories
    noise: Tensor  # (b, c, h, w), of which the student draws
    t: Tensor  # (b, DRAWS), to which what it draws is noised
    eps: Tensor  # (b, DRAWS, c, h, w), with this

    def split(self, parts: int) -> "list[Matched]":
        tensors = (x.chunk(parts) for x in (self.noise, self.t, self.eps))
        pieces = zip(self.batch.split(parts), *tensors, strict=True)
        return [Matched(*piece) for piece in pieces]


@dataclass(frozen=True)
class Inputs:
    """What the losses are computed from: tensors on the device."""

    y: Tensor  # (b, steps + 1, c, h, w), the teacher's states
    times: Tensor  # (b, steps + 1), of them
    noise: Tensor  # (b, c, h, w)
    t: Tensor  # (DRAWS, b)
    eps: Tensor  # (DRAWS, b, c, h, w)
    text: TextInput
    given: TextEmbedding  # the prompts, as the teacher reads them
    null: TextEmbedding  # as many null prompts


class DistributionMatching(FewSteps):
    """The student's pictures are moved to where its teacher finds them likelier than a critic does,
    a second network that learns what the student draws.

    With x_i what i steps of the student make of a trajectory's noise, y_i its teacher's states, x
    what all steps make of fresh noise, x_t = (1 - t) x + t eps, v_T the teacher's velocity and v_C
    the critic's, all products and norms as means over the elements of a picture:

        L = r sum_i | x_i - y_i | / (t_{i-1} - t_i) / steps + g · x + | v_C(x_t, t) - (eps - x) |^2
        g = t (v_T - v_C) / | x - (x_t - t v_T) |,  without a gradient, as x in the last term

    g leads to a smaller divergence between the two distributions of x_t: Yin et al. 2024, "One-step
    Diffusion with Distribution Matching Distillation" (DMD), eq. 7 and 8 on velocities, but for a
    factor 1 - t there. The first term stands for their regression of pairs (eq. 9): it keeps the
    variety that g alone would lose. All steps of the student get a gradient.
    """

    terms = ("regression", "matching", "critic")

    @dataclass(frozen=True)
    class Settings(FewSteps.Settings):
        regression: Annotated[float, Gt(0), "Weight of the distance to the trajectories."] = 0.25
        matched_guidance: Annotated[
            float | None,
            Ge(0),
            "The teacher's scale to match; if unset, 4/5 of the way to guidance.",
        ] = None
        critic_rate: Annotated[
            float, Gt(0), "The critic's learning rate, as a multiple of train.learning_rate."
        ] = 5.0

    def __init__(
        self, config: RunConfig, pipeline: Pipeline, recipe: Recipe, scale: float = 1.0
    ) -> None:
        super().__init__(config, pipeline, recipe, scale)
        given = config.objective.matched_guidance
        self.matched = 1 + MATCHED * (scale - 1) if given is None else given
        if self.matched != 1:
            self.teacher.require_null_prompt()
        self.critic = Critic(self.teacher, config, self.matched)
        self.others = self.teacher.pipeline, self.critic.pipeline
        self.module, self.module_rate = self.critic.trained, config.objective.critic_rate

    def draw(self, batch: Batch, generator: torch.Generator) -> Matched:
        assert isinstance(batch, Trajectories)
        shape = (len(batch), 1 + DRAWS, *batch.images.shape[2:])
        noise = torch.randn(shape, generator=generator, device=generator.device)
        # Spread evenly over the density, and then dealt out: a picture's times have no relation.
        t = sample(TIMES, DRAWS * len(batch), generator, stratified=True).clamp(LEAST, MOST)
        t = t[torch.randperm(len(t), generator=generator, device=t.device)]
        return Matched(batch, noise[:, 0], t.view(len(batch), DRAWS), noise[:, 1:])

    def prepare(self, example: Matched, alike: bool = False) -> Inputs:
        batch = example.batch
        text = self.pipeline.text.read(batch.captions, room=len(batch) if alike else 0)
        y, times = states_of_steps(batch, self.config.objective.steps)
        given, null = self.teacher.texts(batch.captions)
        t, eps = example.t.T, example.eps.transpose(0, 1)
        return Inputs(y, times, example.noise, t, eps, text, given, null)

    def losses(self, inputs: Inputs) -> Losses:
        regression, x = self._drawn(inputs)
        b, drawn, t = len(x), x.detach(), inputs.t[0]
        at, eps, every = inputs.t.flatten(), inputs.eps.flatten(0, 1), _repeated(b, DRAWS, x)
        noised = interpolate(drawn[every], eps, at)  # (DRAWS b, c, h, w)
        v_c = self.critic.velocity(noised, at, inputs.given[every])
        error = (v_c - velocity_target(drawn[every], eps)).square().flatten(1).mean(1)
        critic = error.view(DRAWS, b).mean(0)
        x_t, v_c = noised[:b], v_c[:b]
        texts, precision = (inputs.given, inputs.null), self.config.train.precision
        v_t = self.teacher.guided_velocity(x_t, t, texts, self.matched, precision)
        with torch.no_grad():
            away = (drawn - x0_from_velocity(x_t, v_t, t)).abs().flatten(1).mean(1)
            g = beside(t / away.clamp(min=LEAST_DISTANCE), x) * (v_t - v_c)
        matching = (x - (drawn - g)).square().flatten(1).mean(1) / 2  # whose gradient in x is g
        total = self.config.objective.regression * regression + matching + critic
        terms = {"regression": regression, "matching": matching, "critic": critic}
        return Losses(total, t, terms)

    def _drawn(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """How far the student's steps are from the trajectories (b,), and what it draws of fresh
        noise (b, c, h, w)."""
        b, precision = len(inputs.noise), self.config.train.precision
        twice = _repeated(b, 2, inputs.noise)
        cond = self.pipeline.embed_text(inputs.text, precision)[twice]
        times = inputs.times[twice]
        x, error = torch.cat((inputs.y[:, 0], inputs.noise)), inputs.noise.new_zeros(b)
        for i in range(self.config.objective.steps):
            step = times[:, i] - times[:, i + 1]
            v = self.pipeline.velocity(x, times[:, i], cond, precision=precision)
            x = x - beside(step, v) * v
            away = (x[:b] - inputs.y[:, i + 1]).abs().flatten(1).mean(1)
            error = error + away / step[:b]
        return error / self.config.objective.steps, x[b:]


def _repeated(n: int, times: int, like: Tensor) -> Tensor:
    """The rows of a batch of n so many times one after the other: (times n,)."""
    return torch.arange(n, device=like.device).repeat(times)
