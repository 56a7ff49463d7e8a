"""fluxsmith as it is, at work: the training step and the sampler that users run."""

import torch

from fluxsmith.allocator import keep_freed_memory
from fluxsmith.config import RunConfig
from fluxsmith.training.compiling import compile_for_training
from fluxsmith.training.run import build_trainer


class Ours:
    name = "fluxsmith"

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        keep_freed_memory()  # as `fluxsmith train` does
        self.trainer = build_trainer(config, device)
        self.pipeline = self.trainer.pipeline
        compile_for_training(self.pipeline, self.trainer.captions)
        self.pipeline.compiles = config.train.compile is True
        self.pipeline.train()
        self.pipeline.precision = config.train.precision

    def train_step(self) -> None:
        """Data, text, forward, backward, clip, optimiser, average."""
        self.trainer.train_step()

    def sample(self, prompts: list[str], steps: int, guidance: float) -> torch.Tensor:
        return self.pipeline.generate(
            prompts, steps=steps, guidance=guidance, solver="euler", batch_size=len(prompts)
        )
