"""The memory of a training step, found by making one of tensors that have shapes and no numbers.

The step is the trainer's own, with the kernels that training takes; so what each of them keeps for
the backward pass, and what it needs on its way, is counted where it is made and where it is freed.
"""

import weakref
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fluxsmith.config import RunConfig
from fluxsmith.kernels.cpu.operators import KERNELS
from fluxsmith.model.tokens import image_ids, text_ids
from fluxsmith.planning.outline import Outline, changed

ACTIVATIONS = "activations"  # and all else that comes and goes
PARTS = (
    "weights", "gradients", "optimiser", "average", ACTIVATIONS, "cast weights", "batch",
)  # fmt: skip


class Allocations(TorchDispatchMode):
    """Notes inside which storages are made and freed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []  # (number of a storage, its bytes; -bytes if freed)
        self.parts: dict[int, str] = {}  # what storages are for, by their numbers
        self.begun = 0  # the first of the events at which what is held counts
        self._numbers: dict[int, int] = {}  # of the storages that live, by their place in memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1  # whether a step is finite, and the like: it is
        if func.namespace == "fluxsmith":  # our own operators: what they make inside counts too
            with self:
                return KERNELS[func._opname](*args, **(kwargs or {}))
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._number(leaf)
        # Autocast's copies of weights: where a model is cut over ranks, there are none.
        if func is torch.ops.aten._to_copy.default and self._part(args[0]) == "weights":
            self.mark("cast weights", [found])
        return found

    def _part(self, x: Tensor) -> str | None:
        return self.parts.get(self._number(x))

    def _number(self, x: Tensor) -> int:
        """Of the storage of x, which is noted where it is new."""
        storage = x.untyped_storage()
        place = storage._cdata
        if place not in self._numbers:
            number = self._numbers[place] = len(self.events)
            self.events.append((number, storage.nbytes()))
            weakref.finalize(storage, self._freed, place, storage.nbytes()).atexit = False
        return self._numbers[place]

    def _freed(self, place: int, size: int) -> None:
        self.events.append((self._numbers.pop(place), -size))

    def mark(self, part: str, tensors: Iterable[Tensor]) -> None:
        for x in tensors:
            self.parts.setdefault(self._number(x), part)

    def mark_others(self, part: str) -> None:
        """All that live and have no part yet."""
        for number in self._numbers.values():
            self.parts.setdefault(number, part)

    def at_most(self, shares: Mapping[str, float] | None = None) -> dict[str, int]:
        """The bytes of each part at the moment at which all together are the most, where only these
        `shares` of parts are held, by default all."""
        shares = shares or {}

        def held(event: tuple[int, int]) -> float:
            return event[1] * shares.get(self.parts.get(event[0], ACTIVATIONS), 1.0)

        sums = list(accumulate(map(held, self.events)))
        until = 1 + max(range(self.begun, len(sums)), key=sums.__getitem__)
        found = dict.fromkeys(PARTS, 0.0)
        for event in self.events[:until]:
            found[self.parts.get(event[0], ACTIVATIONS)] += held(event)
        return {part: round(size) for part, size in found.items()}


def traced(outline: Outline, config: RunConfig) -> Allocations:
    """What training a config holds in a step on one device, with the outline's data. Nothing is
    computed, and no memory of that size is needed."""
    config = changed(config, train={"cuda_graphs": False})  # there is nothing to capture
    captions = outline.fullest(config.train.batch_size)
    for tables in (image_ids, text_ids):
        tables.cache_clear()  # in these, nothing real is for the trace, and nothing of it for later
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Allocations() as found:
            _train(outline, config, captions, found)
    finally:
        for tables in (image_ids, text_ids):
            tables.cache_clear()
    return found


def _train(outline: Outline, config: RunConfig, captions: list[str], found: Allocations) -> None:
    trainer = outline.trainer(config)
    pipeline = trainer.pipeline
    found.begun = len(found.events) - 1  # what it took to be made is over
    found.mark("weights", (*pipeline.parameters(), *pipeline.buffers()))
    found.mark("average", trainer.ema.weights.values())
    optimiser, trained = trainer.optimiser, trainer.update.trained

    def mark_gradients(*_: Any) -> None:
        found.mark("gradients", (p.grad for p in trained if p.grad is not None))

    optimiser.register_step_pre_hook(mark_gradients)
    for p in trained:  # it makes its state at its first step: so that the one that follows has it
        p.grad = torch.empty_like(p)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    state = (x for one in optimiser.state.values() for x in one.values())
    found.mark("optimiser", (x for x in state if isinstance(x, Tensor)))
    trainer.train_step(outline.batch(captions))
    found.mark_others("batch")  # which the trainer keeps until the next one
