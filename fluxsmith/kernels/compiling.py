"""Compiling the blocks of the network by torch.compile, each by itself, so that all the equal ones
are compiled once. The code is kept on disk, and the next start is quick."""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fluxsmith.device import cache_folder
from fluxsmith.kernels.cpu import features
from fluxsmith.model.flux import Flux

# `auto` compiles where a run takes so many operations or more: on two CPU cores compiling takes up
# to half a minute and saves a thirtieth of each step, so a run of a quarter of an hour gets back
# what it costs. This is four times that on two fast cores.
OPERATIONS = 1e15
SHAPES = 4  # of inputs, at most, for which `auto` compiles


def pays(device: torch.device, operations: float, shapes: int) -> bool:
    """Whether compiling saves more time than it takes, in a run of so many floating-point
    operations on inputs of so many shapes. It follows from numbers of the config alone, so a
    resumed run decides as the run did."""
    return device.type == "cpu" and operations >= OPERATIONS and shapes <= SHAPES


def prepare_compiling(device: torch.device) -> str:
    """To be called before anything is compiled: why nothing can be, or nothing where it can."""
    # One for each kind of processor: the code has its vectors' width in it, torch's key has not.
    kind = features.kind() + os.environ.get("ATEN_CPU_CAPABILITY", "")
    own = hashlib.sha256(kind.encode()).hexdigest()[:12]
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled" / own))
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # torch's compilers raise many kinds, for want of many programs
        return str(error).strip().partition("\n")[0] or type(error).__name__
    # A code of its own for every length of text, however many: with one code for several, or for
    # none past a limit, it would depend on a run's past which code a length gets, and a resumed run
    # would not be the run.
    torch._dynamo.config.cache_size_limit = sys.maxsize
    torch._dynamo.config.accumulated_cache_size_limit = sys.maxsize
    return ""


def compile_blocks(network: Flux) -> None:
    """From now on the network's blocks compile themselves for every shape that they meet."""
    for block in network.blocks:
        block.compile(dynamic=False)


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
