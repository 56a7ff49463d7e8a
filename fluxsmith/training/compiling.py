"""Compiling the network for training, where that saves more time than it takes.

Each block is compiled by itself, so that all the equal ones are compiled once. Whether it is worth
it follows from the config and the kind of device alone, never from a timing: a run that is resumed
must compute as the run did.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fluxsmith.files import cache_folder
from fluxsmith.model.cost import training_flops
from fluxsmith.pipeline import Pipeline

# From so many operations in a run on, compiling by `auto` pays: on two CPU cores it takes a minute
# and saves a seventh of a run at the lesson's size, and nothing at the size of digits/colored.
WORTH = {"cpu": 1e15}
MOST_LENGTHS = 4  # of text, for which `auto` compiles

# How often torch compiles one function at most, and one function for one module; torch 2.6's names
# and newer ones.
LIMITS = (
    "cache_size_limit", "accumulated_cache_size_limit",
    "recompile_limit", "accumulated_recompile_limit",
)  # fmt: skip


def compile_for_training(pipeline: Pipeline, captions: list[str]) -> list[str]:
    """Compiles the blocks where train.compile asks for it; returns what there is to say of it."""
    config = pipeline.config
    wanted = config.train.compile
    if wanted is False or (wanted == "auto" and not pays(pipeline, captions)):
        return []
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    if reason := _cannot(pipeline.device):
        return [f"compile     not possible here, so training is slower: {reason}"]
    # A code of its own for every length of text, however many: with one code for several, or for
    # none past a limit, it would depend on a run's past which code a length gets, and a resumed run
    # would not be the run.
    for limit in LIMITS:
        if hasattr(torch._dynamo.config, limit):
            setattr(torch._dynamo.config, limit, sys.maxsize)
    for block in (*pipeline.network.double_blocks, *pipeline.network.single_blocks):
        block.compile(dynamic=False)
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


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, compiled blocks run as they are written: for the few passes of an evaluation or a
    sample grid, whose shapes would have to be compiled first."""
    if "torch._dynamo" not in sys.modules:  # slow to import, and nothing was compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _cannot(device: torch.device) -> str:
    """Why torch.compile doesn't work on this machine; nothing where it does."""

    def probe(x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1

    try:
        torch.compile(probe)(torch.ones(8, device=device))
    except Exception as error:  # torch's compilers raise many kinds, for want of many programs
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return ""
