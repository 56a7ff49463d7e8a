"""Drawing as the page asks for it: every state of the solver on its way to the client."""

import base64
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fluxsmith.data.images import to_uint8, to_unit
from fluxsmith.errors import UserError
from fluxsmith.flow.path import Velocity, x0_from_velocity
from fluxsmith.pipeline import Pipeline
from fluxsmith.sampling.edit import Edit
from fluxsmith.sampling.generate import Drawing, Sampler
from fluxsmith.web.line import Emit

MOST_PICTURES = 64
MOST_STEPS = 200
MOST_NUMBERS = 2**26  # of all states that are shown of a drawing, each kept up to three times

Scale = Annotated[float, Field(ge=-20, le=100)]


class Request(BaseModel):
    """What a client may ask to be drawn."""

    model_config = ConfigDict(extra="forbid")

    model: str
    prompts: Annotated[list[str], Field(min_length=1, max_length=MOST_PICTURES)]
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)]
    guidance: Scale = 1.0
    solver: str = "euler"
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    one_noise: bool = False
    judge: bool = False  # also say what a classifier sees
    picture: str | None = None  # pixels (h, w, c) uint8 in base64, to draw from
    mask: str | None = None  # pixels (h, w), above 127 where it is drawn anew
    strength: Annotated[float, Field(gt=0, le=1)] | None = None


class WatchedSampler(Sampler):
    """A sampler that shows each state of the solver with the velocity there, of which the data that
    the model predicts follows."""

    def __init__(
        self, pipeline: Pipeline, see: Callable[[Tensor, Tensor, Tensor], None], **options: Any
    ) -> None:
        super().__init__(pipeline, **options)
        self._see = see  # (x (b, c, h, w), t (), v): at every evaluation

    def guided_velocity(self, *given: Any, **options: Any) -> Velocity:
        velocity = super().guided_velocity(*given, **options)

        def seen(x: Tensor, t: Tensor) -> Tensor:
            v = velocity(x, t)
            self._see(x, t, v)
            return v

        return seen


class States:
    """The solver's states, noise first, each emitted once the data is known that the model predicts
    there: {"state": i, "t", "first", "x", "x0"}, with pixels (n, h, w, c) in base64. `first` is the
    number of the first picture."""

    def __init__(self, emit: Emit, pipeline: Pipeline, first: int = 0) -> None:
        self._emit, self._pipeline, self._first = emit, pipeline, first
        self.times: list[float] = []
        self.pictures: list[Tensor] = []  # x_t (n, c, h, w), decoded
        self.predicted: list[Tensor] = []  # x0, likewise
        self.latents: list[Tensor] = []  # x_t as the network sees it, of all states but the last

    def on_step(self, i: int, t: float, images: Tensor) -> None:
        self.times.append(t)
        self.pictures.append(images)
        if t == 0:
            self._add(images)

    def see(self, x: Tensor, t: Tensor, v: Tensor) -> None:
        """A solver's first evaluation after a step is at its state, its others are in between."""
        if len(self.predicted) == len(self.pictures):
            return
        self.latents.append(x)
        self._add(self._pipeline.autoencoder.decode(x0_from_velocity(x, v, t)))

    def _add(self, x0: Tensor) -> None:
        self.predicted.append(x0)
        event = {"state": len(self.predicted) - 1, "t": self.times[-1], "first": self._first}
        self._emit(event | {"x": encoded(self.pictures[-1]), "x0": encoded(x0)})


def draw(pipeline: Pipeline, asked: Request, emit: Emit, first: int = 0, **options: Any) -> States:
    """Draws what was asked for, from the states on which the client sees it come."""
    states = States(emit, pipeline, first)
    sampler = WatchedSampler(pipeline, states.see, **options)
    sampler.draw(plan(sampler, asked), states.on_step)
    return states


def plan(sampler: Sampler, asked: Request) -> Drawing:
    """The drawing that was asked for; a UserError where it can't be had."""
    data = sampler.pipeline.config.data
    shown = len(asked.prompts) * (asked.steps + 1) * data.channels * data.image_size**2
    if shown > MOST_NUMBERS:
        raise UserError(
            f"{len(asked.prompts)} pictures in {asked.steps} steps are more than this page keeps; "
            f"ask for fewer pictures or steps"
        )
    return sampler.plan(
        asked.prompts,
        steps=asked.steps,
        guidance=asked.guidance,
        solver=asked.solver,
        seed=asked.seed,
        one_noise=asked.one_noise,
        edit=_edit(sampler.pipeline, asked),
        batch_size=MOST_PICTURES,  # all at once, so that a state is one of all of them
    )


def _edit(pipeline: Pipeline, asked: Request) -> Edit | None:
    if asked.picture is None:
        return None
    data = pipeline.config.data
    shape = data.image_size, data.image_size
    picture = to_unit(_decoded("picture", asked.picture, (*shape, data.channels)))
    mask = None
    if asked.mask is not None:
        mask = (_decoded("mask", asked.mask, (*shape, 1)) > 127).float()
    return Edit(picture, asked.strength, mask)


def _decoded(what: str, text: str, shape: tuple[int, int, int]) -> Tensor:
    """(c, h, w) uint8 of pixels (h, w, c)."""
    try:
        pixels = base64.b64decode(text, validate=True)
    except ValueError:
        raise UserError(f"the {what} is no picture: it must be pixels in base64") from None
    height, width, channels = shape
    if len(pixels) != height * width * channels:
        raise UserError(
            f"the {what} is no picture of {height}x{width} pixels: {len(pixels)} bytes in place of "
            f"{height * width * channels}"
        )
    found = torch.frombuffer(bytearray(pixels), dtype=torch.uint8)
    return found.view(shape).permute(2, 0, 1).contiguous()


def encoded(images: Tensor) -> str:
    """(n, c, h, w) in [-1, 1], or beyond, as pixels (n, h, w, c) uint8 in base64."""
    pixels = to_uint8(images.float().clamp(-1, 1)).permute(0, 2, 3, 1).contiguous()
    return base64.b64encode(pixels.cpu().numpy().tobytes()).decode()
