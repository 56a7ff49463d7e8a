"""The one way to call the model: built from a config, it encodes text, gives the velocity of
images, and draws. Training, validation, the solvers and teachers all go through `velocity`.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxsmith import checkpoint as checkpoints
from fluxsmith.autoencoder import Autoencoder
from fluxsmith.compiling import compiled
from fluxsmith.config import RunConfig
from fluxsmith.config.comparing import FREE
from fluxsmith.config.reading import build_config, with_overrides
from fluxsmith.config.size import parameters_at_least
from fluxsmith.device import (
    autocast,
    computing_dtype,
    explaining_memory,
    for_each,
    pick_device,
)
from fluxsmith.errors import UserError
from fluxsmith.flow.editing import inpaint, shortened
from fluxsmith.flow.guidance import classifier_free, embedded, within_interval
from fluxsmith.flow.path import Velocity, interpolate
from fluxsmith.flow.schedule import SCHEDULES
from fluxsmith.flow.solvers import SOLVERS, Solver, evaluations
from fluxsmith.flow.solvers import OnStep as SolverStep
from fluxsmith.model.flux import Flux
from fluxsmith.model.layouts import keeping_layouts
from fluxsmith.model.tokens import image_ids, patchify, text_ids, token_grid, unpatchify
from fluxsmith.pipeline.edit import Edit, check_edit
from fluxsmith.pipeline.graphed import GraphedVelocity
from fluxsmith.pipeline.parts import (
    build_autoencoder,
    build_text_encoder,
    check_autoencoder,
    flux_params,
)
from fluxsmith.randomness import address_seed, image_noise
from fluxsmith.text.encoder import NULL_PROMPT, TextEmbedding, TextEncoder, TextInput
from fluxsmith.text.frozen import FrozenText

# Called with (step, t, images): step 0 is the noise, and the images are decoded, unclamped.
OnStep = Callable[[int, float, Tensor], None]


TOKENS_AT_ONCE = 4096  # image tokens of the pictures that `generate` draws together, by default

# Guidance evaluates its two velocities in one batch of twice the size up to so many tokens of image
# and text; with more the caches miss what calls and weights would save. The second number is for
# captions longer than the empty prompt, which is padded to their length then.
TOGETHER, TOGETHER_PADDED = 2048, 320


class Pipeline(nn.Module):
    """A text encoder, a Flux and an autoencoder, together a text-to-image model."""

    def __init__(
        self, config: RunConfig, network: Flux, text: TextEncoder, autoencoder: Autoencoder
    ) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self.text = text  # a submodule where it is learned, and only there
        self.autoencoder = autoencoder
        self.precision = "float32"  # of encode_text and velocity
        # Whether `generate` compiles the network for its full batches; set after
        # `prepare_compiling`, which says whether that is possible.
        self.compiles = False
        self.graphed: GraphedVelocity | None = None  # what `generate` draws by, if anything
        # Of the checkpoint this came from; a new model has none.
        self.step = 0
        self.captions: list[str] = []

    @classmethod
    def build(cls, config: RunConfig, device: torch.device | str = "cpu") -> "Pipeline":
        """A new model, its weights drawn from config.seed, the same on every device."""
        autoencoder = build_autoencoder(config, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(address_seed(config.seed, "weights"))
            text = build_text_encoder(config, device)
            network = Flux(flux_params(config, autoencoder, text))
        return cls(config, network, text, autoencoder).to(device)

    @classmethod
    def shaped(cls, config: RunConfig, device: torch.device | str = "cpu") -> "Pipeline":
        """A model whose network has shapes but no weights; `load_weights(assign=True)` brings them,
        in their own dtype and from wherever they are, without a copy."""
        autoencoder = build_autoencoder(config, device)
        with torch.random.fork_rng(devices=[]):
            text = build_text_encoder(config, device)
        with torch.device("meta"):
            network = Flux(flux_params(config, autoencoder, text))
        return cls(config, network, text, autoencoder)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str = "auto",
        weights: str = "ema",
        overrides: Sequence[str] = (),
        bring: "Bring | None" = None,
    ) -> "Pipeline":
        """The model in a checkpoint; `weights` is `ema` (the average) or `model` (the raw ones).

        `overrides` say where files lie on this machine, such as `text.t5=FOLDER`. Its weights are
        mapped from the file, and `bring` puts them on the device; by default all go there at once.
        """
        if weights not in ("ema", "model"):
            raise UserError(f"weights={weights}: must be ema or model")
        contents = checkpoints.load(path)
        contents["config"] = with_overrides(contents["config"], overrides, allowed=FREE)
        return cls.from_contents(contents, path, device, weights, bring)

    @classmethod
    def from_contents(
        cls,
        contents: dict[str, Any],
        path: str | Path,
        device: str,
        weights: str,
        bring: "Bring | None" = None,
    ) -> "Pipeline":
        config = build_config(contents["config"], origin=str(path))
        promised = parameters_at_least(config)
        found = sum(tensor.numel() for tensor in contents[weights].values())
        if promised > found:  # so a small file can't make this machine build a huge model
            raise UserError(
                f"{path} doesn't fit itself: its config describes {promised:,} parameters or more, "
                f"and it holds {found:,}; use another one"
            )
        on = pick_device(device)
        pipeline = cls.shaped(config, on)
        check_autoencoder(pipeline.autoencoder, contents["metadata"], origin=str(path))
        pipeline.expect_text(contents["metadata"], origin=str(path))
        pipeline.load_weights(contents[weights], origin=str(path), assign=True)
        pipeline.step = contents["step"]
        pipeline.captions = list(contents["metadata"].get("captions", []))
        if bring is None:
            pipeline.to(on)
            pipeline.network.to(computing_dtype(pipeline.network.img_in.weight.dtype))
        else:
            bring(pipeline, on)
        return pipeline.eval()

    def text_metadata(self) -> dict[str, Any]:
        """What a checkpoint's metadata says of frozen encoders; nothing of a learned one."""
        return {"text": self.text.identity()} if isinstance(self.text, FrozenText) else {}

    def expect_text(self, metadata: Mapping[str, Any], origin: str) -> None:
        """Holds frozen encoders to those that a checkpoint was trained with."""
        if isinstance(self.text, FrozenText):
            self.text.expect(metadata.get("text", {}), origin)

    def load_weights(self, weights: dict[str, Tensor], origin: str, assign: bool = False) -> None:
        """Loads tensors by name, copied into the model's own or, with `assign`, in their place; a
        UserError names the first that don't fit."""
        own = self.state_dict()
        missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
        if missing or extra:
            raise UserError(
                f"{origin} doesn't fit this model: {len(missing)} tensors missing "
                f"{missing[:3]}, {len(extra)} unknown {extra[:3]}; was it another config's?"
            )
        for name, tensor in weights.items():
            if tensor.shape != own[name].shape:
                raise UserError(
                    f"{origin} doesn't fit this model: {name} is {tuple(tensor.shape)} in the "
                    f"file, {tuple(own[name].shape)} here; was it another config's?"
                )
        self.load_state_dict(weights, assign=assign)

    @property
    def device(self) -> torch.device:
        return self.network.img_in.weight.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of what the flow runs on."""
        size = self.config.data.image_size
        return self.latent_shape_of(size, size)

    def latent_shape_of(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w) of what the flow runs on, for pictures of height x width pixels."""
        factor = self.autoencoder.factor
        return self.autoencoder.channels, height // factor, width // factor

    def image_tokens(self, shape: tuple[int, int, int]) -> int:
        """The network's image tokens for latents of this shape."""
        _, height, width = shape
        rows, columns = token_grid(height, width, self.config.model.patch_size)
        return rows * columns

    def encode_text(self, prompts: Sequence[str]) -> TextEmbedding:
        """The prompts as the network takes them, one row each."""
        with autocast(self.device, self.precision):
            return self.text(prompts).to(self.device)

    def embed_text(self, read: TextInput) -> TextEmbedding:
        """The same from what the text encoder's `read` gives: the part that the device does."""
        with autocast(self.device, self.precision):
            return self.text.embed(read).to(self.device)

    def velocity(
        self, x: Tensor, t: Tensor, cond: TextEmbedding, guidance: float | Tensor = 1.0
    ) -> Tensor:
        """The velocity of x (b, c, h, w) at times t, (b,) or a scalar, in float32.

        `guidance`, one scale or (b,), reaches networks with a guidance input; the others have no
        use for it but 1.
        """
        b, _, height, width = x.shape
        patch = self.config.model.patch_size
        tokens = patchify(x, patch)  # (b, l, c p p)
        embeds = self.config.model.guidance_embed
        if not embeds and (isinstance(guidance, Tensor) or guidance != 1):
            raise ValueError(f"guidance {guidance} given to a network without a guidance input")
        with autocast(self.device, self.precision):
            v = self.network(
                img=tokens,
                img_ids=image_ids(*token_grid(height, width, patch), x.device),
                txt=cond.tokens,
                txt_ids=text_ids(cond.tokens.shape[1], x.device),
                timesteps=for_each(t, b, x.device),
                y=cond.pooled,
                guidance=for_each(guidance, b, x.device) if embeds else None,
                txt_mask=cond.mask,
            )
        return unpatchify(v.float(), patch, height, width)

    def guided_velocity(self, cond: TextEmbedding, guidance: float) -> Velocity:
        """The velocity that a solver follows for these prompts at this guidance scale."""
        sample = self.config.sample
        velocity = self.graphed or self.velocity
        if sample.guidance_method == "embedded":
            return embedded(lambda x, t, scale: velocity(x, t, cond, scale), guidance)

        def conditional(x: Tensor, t: Tensor) -> Tensor:
            return velocity(x, t, cond)

        if guidance == 1:
            return conditional
        null = self.encode_text([NULL_PROMPT]).expand(len(cond))
        text = max(cond.tokens.shape[1], null.tokens.shape[1])
        padded = cond.tokens.shape[1] != null.tokens.shape[1]
        most = TOGETHER_PADDED if padded else TOGETHER

        def unconditional(x: Tensor, t: Tensor) -> Tensor:
            return velocity(x, t, null)

        @cache  # for every step, once one asks for it
        def joined() -> TextEmbedding:
            return cond.followed_by(null)

        def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            b, c, height, width = x.shape
            if b * (self.image_tokens((c, height, width)) + text) > most:
                return conditional(x, t), unconditional(x, t)
            times = t.repeat(2) if t.ndim else t
            v_c, v_u = velocity(torch.cat((x, x)), times, joined()).chunk(2)
            return v_c, v_u

        guided = classifier_free(conditional, unconditional, guidance, both)
        return within_interval(guided, conditional, *sample.guidance_interval)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        solver: str | None = None,
        size: tuple[int, int] | None = None,
        edit: Edit | None = None,
        first_index: int = 0,
        batch_size: int | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """One picture a prompt: (n, c, h, w) in [-1, 1], on the CPU.

        Settings left out are the config's; `size` is (height, width) in pixels. Picture i starts
        from the noise addressed by (seed, first_index + i), so it does not depend on what is drawn
        beside it. `on_step` sees the pictures of one batch at a time. Raises a UserError for
        settings that can't be used.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        settings = self.config.sample
        steps = settings.steps if steps is None else steps
        guidance = settings.guidance if guidance is None else guidance
        solver = settings.solver if solver is None else solver
        size = (self.config.data.image_size,) * 2 if size is None else size
        self.check_drawable(prompts, steps, guidance, solver, size, edit)
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size={batch_size}: must be at least 1")

        shape = self.latent_shape_of(*size)
        ts = SCHEDULES[settings.schedule](steps, self.image_tokens(shape))
        at_once = batch_size or min(64, max(1, TOKENS_AT_ONCE // self.image_tokens(shape)))
        report = self._decoded(on_step) if on_step is not None else None
        taken = len(ts if edit is None else shortened(ts, edit.strength)) - 1
        passes = evaluations(solver, taken) * math.ceil(len(prompts) / at_once)  # at least
        pictures = []
        trying = f"{min(at_once, len(prompts))} pictures at once"
        fewer = "draw fewer at once (--num-samples, or batch_size in Python), or smaller ones"
        with (
            self.drawing(settings.precision),
            keeping_layouts(self.network, passes),
            explaining_memory(trying, fewer),
        ):
            for start in range(0, len(prompts), at_once):
                part = prompts[start : start + at_once]
                first = first_index + start
                eps = image_noise(shape, seed, range(first, first + len(part))).to(self.device)
                velocity = self.guided_velocity(self.encode_text(part), guidance)
                full = len(part) == min(at_once, len(prompts))
                with compiled(self.network) if self.compiles and full else nullcontext():
                    x = self.solve(SOLVERS[solver], velocity, eps, ts, edit, report)
                pictures.append(self.autoencoder.decode(x).clamp(-1, 1).cpu())
        return torch.cat(pictures)

    def solve(
        self,
        solver: Solver,
        velocity: Velocity,
        eps: Tensor,
        ts: Tensor,
        edit: Edit | None = None,
        on_step: SolverStep | None = None,
    ) -> Tensor:
        """From noise (b, c, h, w) at ts[0] = 1 to latents, or from the picture of an edit."""
        if edit is None:
            return solver(velocity, eps, ts, on_step)
        x0 = self.autoencoder.encode(edit.image[None].to(self.device))  # (1, c, h, w)
        ts = shortened(ts, edit.strength)
        if edit.mask is None:
            return solver(velocity, interpolate(x0, eps, ts[0]), ts, on_step)
        mask = F.interpolate(edit.mask[None].to(x0), eps.shape[2:])  # nearest: (1, 1, h, w)
        return inpaint(solver, velocity, x0, eps, mask, ts, on_step)

    @contextmanager
    def drawing(self, precision: str) -> Iterator[None]:
        """Inside, the model is in eval mode and computes at this precision; then as before."""
        training, before = self.training, self.precision
        self.eval()
        self.precision = precision
        try:
            yield
        finally:
            self.train(training)
            self.precision = before

    def check_drawable(
        self,
        prompts: Sequence[str],
        steps: int,
        guidance: float,
        solver: str,
        size: tuple[int, int] | None = None,
        edit: Edit | None = None,
    ) -> None:
        """Raises a UserError that names the first of these which `generate` could not use."""
        if solver not in SOLVERS:
            raise UserError(f"solver={solver}: must be one of {', '.join(SOLVERS)}")
        if steps < 1:
            raise UserError(f"steps={steps}: sampling needs at least 1")
        if not math.isfinite(guidance):
            raise UserError(f"guidance={guidance}: must be a finite number")
        if size is not None:
            self._check_size(*size)
        if edit is not None:
            check_edit(edit, size)
        if not prompts:
            raise UserError("there is no prompt to draw; give at least one")
        self.text.check(prompts)

    @property
    def size_unit(self) -> int:
        """Heights and widths in pixels are multiples of this."""
        return self.autoencoder.factor * self.config.model.patch_size

    def _check_size(self, height: int, width: int) -> None:
        unit = self.size_unit
        for name, pixels in (("height", height), ("width", width)):
            if pixels < unit or pixels % unit:
                below = max(unit, pixels - pixels % unit)
                raise UserError(
                    f"{name}={pixels}: must be a multiple of {unit}, such as {below} or "
                    f"{below + unit}"
                )

    def digest(self) -> str:
        """A short digest of every weight and of the settings that shape a picture beside those a
        call names: the model's sections, image size and channels, and the sample section."""
        settings = self.config.model_dump(
            include={
                "data": {"image_size", "channels"},
                "text": True,
                "model": True,
                "sample": {"schedule", "guidance_method", "guidance_interval", "precision"},
            },
            exclude={"text": {key.removeprefix("text.") for key in FREE if "text." in key}},
            exclude_none=True,
        )
        settings["autoencoder"] = self.autoencoder.digest
        if isinstance(self.text, FrozenText):
            settings["encoders"] = dict(self.text.digests())
        found = hashlib.sha256(repr(settings).encode())
        for name, tensor in sorted(self.state_dict().items()):
            found.update(name.encode())
            found.update(
                memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
            )
        return found.hexdigest()[:16]

    def _decoded(self, on_step: OnStep) -> Callable[[int, Tensor, Tensor], None]:
        def report(step: int, t: Tensor, x: Tensor) -> None:
            on_step(step, float(t), self.autoencoder.decode(x))

        return report


Bring = Callable[[Pipeline, torch.device], None]
