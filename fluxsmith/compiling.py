"""Compiling the blocks of the network by torch.compile, each by itself, so that all the equal ones
are compiled once. The code is kept on disk, and the next start is quick."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fluxsmith.files import cache_folder
from fluxsmith.model.flux import Flux

# How often torch compiles one function at most, and one function for one module; torch 2.6's names
# and newer ones.
LIMITS = (
    "cache_size_limit", "accumulated_cache_size_limit",
    "recompile_limit", "accumulated_recompile_limit",
)  # fmt: skip


def prepare_compiling(device: torch.device) -> str:
    """To be called before anything is compiled: why nothing can be, or nothing where it can."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    if reason := _cannot(device):
        return reason
    # A code of its own for every length of text, however many: with one code for several, or for
    # none past a limit, it would depend on a run's past which code a length gets, and a resumed run
    # would not be the run.
    for limit in LIMITS:
        if hasattr(torch._dynamo.config, limit):
            setattr(torch._dynamo.config, limit, sys.maxsize)
    return ""


def compile_blocks(network: Flux) -> None:
    """From now on the network's blocks compile themselves for every shape that they meet."""
    for block in network.blocks:
        block.compile(dynamic=False)


def is_compiled(network: Flux) -> bool:
    """Whether the blocks compile themselves now."""
    return any(block._compiled_call_impl is not None for block in network.blocks)


@contextmanager
def compiled(network: Flux) -> Iterator[None]:
    """Inside, the blocks compile themselves for every shape that they meet; then as before."""
    blocks = network.blocks
    before = [block._compiled_call_impl for block in blocks]
    if None in before:
        compile_blocks(network)
    try:
        yield
    finally:
        for block, one in zip(blocks, before, strict=True):
            block._compiled_call_impl = one


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
