"""fluxsmith as it is, at work: the training step and the sampler that users run."""

import sys
from contextlib import nullcontext

import torch

from fluxsmith.allocator import keep_freed_memory
from fluxsmith.compiling import prepare_compiling, uncompiled
from fluxsmith.config import RunConfig
from fluxsmith.training.compiling import compile_for_training
from fluxsmith.training.run import build_trainer


class Ours:
    name = "fluxsmith"

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        if device.type == "cpu":  # as `fluxsmith train` does; drawing takes as long without
            keep_freed_memory()
        self.trainer = build_trainer(config, device)
        self.pipeline = self.trainer.pipeline
        for line in compile_for_training(self.pipeline, self.trainer.captions):
            print(line, file=sys.stderr)
        wanted = config.train.compile is True
        self.pipeline.compiles = wanted and not prepare_compiling(device)  # as with --compile

    def train_step(self) -> None:
        """Data, text, forward, backward, clip, optimiser, average."""
        self.trainer.train_step()

    def sample(self, prompts: list[str], steps: int, guidance: float) -> torch.Tensor:
        with nullcontext() if self.pipeline.compiles else uncompiled():
            return self.pipeline.generate(
                prompts, steps=steps, guidance=guidance, solver="euler", batch_size=len(prompts)
            )
