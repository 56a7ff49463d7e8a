"""Prompts and noise: all that a student needs that learns from its teacher's judgement alone."""

import hashlib
import json
from typing import Any

import torch

from fluxsmith.data.fingerprints import same_data
from fluxsmith.data.loader import Batch, Rows
from fluxsmith.distillation.teacher import Teacher
from fluxsmith.randomness import address_seed, generator, image_noise


class PromptLoader:
    """Prompts that the teacher's checkpoint knows, drawn evenly, each with noise as its image. No
    noise comes twice."""

    def __init__(self, teacher: Teacher, batch_size: int, seed: int) -> None:
        self.teacher = teacher
        self.batch_size = batch_size
        self.seed = address_seed(seed, "prompts")
        self.prompts = teacher.prompts
        self.digest = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()[:12]

    def batch(self, step: int, rows: Rows = None) -> Batch:
        rows = range(self.batch_size) if rows is None else rows
        which = torch.rand(self.batch_size, generator=generator(self.seed, "step", step))
        chosen = (which * len(self.prompts)).long().tolist()
        indices = [step * self.batch_size + row for row in rows]
        pipeline = self.teacher.pipeline
        noise = image_noise(pipeline.latent_shape, self.seed, indices).to(pipeline.device)
        return Batch(noise, [self.prompts[chosen[row]] for row in rows], encoded=True)

    def position(self, step: int) -> dict[str, Any]:
        return {"digest": self.digest}

    def resume(self, position: dict[str, Any], step: int, origin: str) -> None:
        same_data(position, self.position(step), origin)

    def captions(self) -> list[str]:
        return self.prompts

    def describe(self) -> str:
        return f"noise and {len(self.prompts):,} prompts of {self.teacher.path}"
