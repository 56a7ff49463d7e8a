"""The model that a student learns from: frozen, and guided before anything is learned of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.config.comparing import check_same
from fluxsmith.errors import UserError
from fluxsmith.flow.guidance import guided
from fluxsmith.flow.path import beside
from fluxsmith.interop.open_pipeline import TextToImage, merge_adapter
from fluxsmith.kernels.accelerate import accelerate
from fluxsmith.pipeline import Pipeline
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.text.encoder import NULL_PROMPT, TextEmbedding

# What a student shares with its teacher, so that a state means the same to both.
SHARED = (
    "data.image_size", "data.channels", "text", "autoencoder", "flow.prediction", "model.theta",
    "model.axes_dim", "model.num_heads", "model.conditioning",
)  # fmt: skip


def require_guidance(path: Path, guidance_method: str) -> None:
    """Raises a UserError for a student of few steps, which is drawn without guidance."""
    if guidance_method == "none":
        raise UserError(f"{path} is a student of few steps, which can't teach; name its teacher")


class Teacher:
    """Averaged weights of a checkpoint, or of the newest in a run's folder."""

    def __init__(
        self, path: str | Path, device: torch.device | str = "cpu", kernels: str = "auto"
    ) -> None:
        self.path = checkpoints.newest(Path(path))
        self.pipeline = TextToImage.from_checkpoint(self.path, str(device))
        merge_adapter(self.pipeline, None)
        self.pipeline.requires_grad_(False)
        require_guidance(self.path, self.config.sample.guidance_method)
        self._kernels = kernels
        accelerate(self.pipeline.network, kernels)
        self.digest = self.pipeline.digest()

    @property
    def config(self) -> RunConfig:
        return self.pipeline.config

    @property
    def prompts(self) -> list[str]:
        """Those that its checkpoint knows; a UserError where it knows none."""
        if not self.pipeline.captions:
            raise UserError(f"{self.path} has no captions to draw; train it with this version")
        return self.pipeline.captions

    def share(self, student: Pipeline) -> None:
        """Weights that a student keeps frozen, as a LoRA does those beneath it, and that are its
        teacher's are held once for both."""
        own = dict(self.pipeline.named_parameters())
        for name, theirs in student.named_parameters():
            ours = own.get(name)
            if ours is None or theirs.requires_grad or ours.dtype != theirs.dtype:
                continue
            if torch.equal(ours, theirs):
                theirs.data = ours.data

    def check_student(self, config: RunConfig) -> None:
        """Raises a UserError for a student that can't learn from it."""
        check_same(self.config, config, SHARED, str(self.path))

    def require_null_prompt(self) -> None:
        """Raises a UserError where it was trained without one, so that it can't be guided."""
        if not self.config.model.guidance_embed and self.config.data.caption_dropout == 0:
            raise UserError(
                f"{self.path} was trained with data.caption_dropout=0, so there is no null prompt "
                f"to guide it by; train it with data.caption_dropout=0.1, or learn its scale 1"
            )

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Tensor, prompts: Sequence[str], scale: Tensor) -> Tensor:
        """The velocity guided by `scale` (b,) for each of x (b, c, h, w), at times t (b,) or ().

        v = v_u + scale (v_c - v_u), Ho & Salimans 2022, eq. 6, in the teacher's guidance interval,
        and v_c outside; of a teacher with a guidance input what it gives for that scale. Only rows
        that are guided are evaluated twice.
        """
        cond = self.pipeline.encode_text(prompts)
        if self.config.model.guidance_embed:
            return self.pipeline.velocity(x, t, cond, scale)
        v = self.pipeline.velocity(x, t, cond)
        low, high = self.config.sample.guidance_interval
        rows = ((scale != 1) & (low <= t) & (t <= high)).nonzero().flatten()
        if len(rows):
            null = self.pipeline.encode_text([NULL_PROMPT]).expand(len(rows))
            v_u = self.pipeline.velocity(x[rows], t[rows] if t.ndim else t, null)
            v[rows] = guided(v[rows], v_u, scale[rows])
        return v

    @torch.no_grad()
    def guided_velocity(
        self, x: Tensor, t: Tensor, texts: tuple[TextEmbedding, TextEmbedding], scale: float,
        precision: str,
    ) -> Tensor:  # fmt: skip
        """The same at one scale for all, of what `texts` gives and at times t (b,), without a look
        at any number on the device: so it can be captured as a CUDA graph."""
        cond, null = texts
        if self.config.model.guidance_embed:
            return self.pipeline.velocity(x, t, cond, scale, precision)
        v = self.pipeline.velocity(x, t, cond, precision=precision)
        if scale == 1:
            return v
        low, high = self.config.sample.guidance_interval
        v_u = self.pipeline.velocity(x, t, null, precision=precision)
        return torch.where(beside((low <= t) & (t <= high), v), guided(v, v_u, scale), v)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> tuple[TextEmbedding, TextEmbedding]:
        """The prompts, and as many null prompts."""
        null = self.pipeline.encode_text([NULL_PROMPT]).expand(len(prompts))
        return self.pipeline.encode_text(prompts), null

    def pictures(self, prompts: Sequence[str], seed: int, **settings: Any) -> Tensor:
        """What it draws itself, by its own settings but for those given: (n, c, h, w)."""
        sampler = Sampler(self.pipeline, kernels=self._kernels)
        return sampler.generate(prompts, seed=seed, **settings)
