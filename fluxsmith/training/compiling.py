"""Compiling the network for training, where that saves more time than it takes.

Whether it is worth it follows from the config and the kind of device alone, never from a timing: a
run that is resumed must compute as the run did.
"""

import torch

from fluxsmith.compiling import compile_blocks, prepare_compiling
from fluxsmith.model.cost import training_flops
from fluxsmith.pipeline import Pipeline

# From so many operations in a run on, compiling by `auto` pays: on two CPU cores it takes up to
# half a minute, and saves a thirtieth of each step, so a run of a quarter of an hour gets back what
# it costs. This is four times that on two quick cores.
WORTH = {"cpu": 1e15}
MOST_LENGTHS = 4  # of text, for which `auto` compiles


def compile_for_training(pipeline: Pipeline, captions: list[str]) -> list[str]:
    """Compiles the blocks where train.compile asks for it; returns what there is to say of it."""
    config = pipeline.config
    wanted = config.train.compile
    if wanted is False or (wanted == "auto" and not pays(pipeline, captions)):
        return []
    if reason := prepare_compiling(pipeline.device):
        return [f"compile     not possible here, so training is slower: {reason}"]
    compile_blocks(pipeline.network)
    return ["compile     the network's blocks, during the first steps (train.compile)"]


def pays(pipeline: Pipeline, captions: list[str]) -> bool:
    """Whether the run is long enough for `auto`."""
    train = pipeline.config.train
    least = WORTH.get(pipeline.device.type)
    if least is None or not captions:
        return False
    with torch.no_grad():
        text = pipeline.encode_text(captions)
    mask = text.mask if pipeline.config.text.padding in (None, "trim") else None
    if mask is not None and len(mask.sum(dim=1).unique()) > MOST_LENGTHS:
        return False
    txt = text.tokens.shape[1]
    img = pipeline.image_tokens(pipeline.latent_shape)
    step = train.batch_size * training_flops(pipeline.network.params, txt, img)
    return train.steps * step >= least
