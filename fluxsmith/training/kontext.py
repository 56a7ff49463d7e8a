"""Training on edits: the network sees a reference picture beside the noisy one, and an instruction,
and learns the velocity of the picture that should come of them. It is what FLUX.1 Kontext does."""

from dataclasses import replace

import torch

from fluxsmith.data.loader import Batch
from fluxsmith.errors import UserError
from fluxsmith.training.flow_matching import FlowMatching, Inputs, NoisyBatch


class Kontext(FlowMatching):
    """Flow matching with the reference picture of every pair."""

    conditioning = "kontext"
    needs_pixels = True

    def draw(self, batch: Batch, generator: torch.Generator) -> NoisyBatch:
        if batch.references is None:
            raise UserError(
                "objective.kind=kontext: the data has no reference pictures; name their column in "
                "data.reference_key"
            )
        return super().draw(batch, generator)

    def prepare(self, example: NoisyBatch, alike: bool = False) -> Inputs:
        inputs, references = super().prepare(example, alike), example.batch.references
        assert references is not None
        return replace(inputs, image_cond=self.pipeline.image_condition(references))
