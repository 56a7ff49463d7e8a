"""Small Flux networks with weights that matter, alone and in pipelines."""

from pathlib import Path

import torch
from flux_at_random import flux_at_random, inputs, tiny_params
from helpers import randomise

from fluxsmith.model.flux import Flux
from fluxsmith.pipeline import Pipeline

__all__ = ["data_section", "flux_at_random", "inputs", "moved", "tiny_params", "velocity_of"]


def moved(pipeline: Pipeline) -> Pipeline:
    """With random weights, so that everything matters."""
    randomise(pipeline)
    return pipeline.eval()


def data_section(path: Path) -> bytes:
    """The bytes of a safetensors file behind its header: every tensor's, in the file's order."""
    raw = path.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


@torch.no_grad()
def velocity_of(network: Flux, **changes):
    return network(**{**inputs(network.params), **changes})
