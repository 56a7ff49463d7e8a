"""Work on a GPU that is captured once for each shape of its inputs and then replayed: CUDA graphs.

A small network's kernels take less time than the host needs to launch them; a graph launches them
all at once. It holds kernels and the places in memory that they read and write. So inputs are
copied into places of its own, and whatever else it reads has to stay where it is.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fluxsmith.device import memory_wanted
from fluxsmith.errors import UserError

MOST = 64  # graphs of some work; for one more the oldest goes
WARM_UPS = 2  # runs before the capture: the first makes tables and workspaces, and compiles


class CudaCapture:
    """Makes graphs that share their memory: they never run at once, and no output is used past the
    next replay (torch's notes on CUDA semantics, "Sharing memory across captures")."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """What comes before the capture of some work, to prepare it, is done inside."""
        # On the stream of the capture: autograd adds gradients up on the stream where it first met
        # a weight, and libraries keep a workspace for each stream.
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def __call__(self, work: Callable[[], object]) -> Callable[[], object]:
        """Calls the work, which computes nothing that counts yet; returns what computes it."""
        graph = torch.cuda.CUDAGraph()
        with (
            # torch leaves the stream of the capture in place where one fails.
            torch.cuda.stream(torch.cuda.current_stream(self.device)),
            # A thread that saves a checkpoint meanwhile may do what can't be captured.
            torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ),
        ):
            work()
        return graph.replay


@dataclasses.dataclass(frozen=True)
class _Graph:
    inputs: list[Any]  # tensors and None
    output: Any
    replay: Callable[[], object]
    kept: object  # what it reads beside


@dataclasses.dataclass(eq=False)
class Graphed:
    """Work of inputs on a GPU, by CUDA graphs.

    Inputs are dataclasses or lists of tensors, numbers and None, one in the other; the work meets
    numbers as float32 tensors () on the device. The output may be used until the next call.

    Work that can't be captured is a UserError: torch may then be unable to capture anything more,
    or to free memory, so that this process had better end.
    """

    work: Callable[[Any], Any]
    # The work for inputs that don't matter, without a trace; what it returns lives as long as the
    # graph.
    warm_up: Callable[[Any], object]
    module: nn.Module  # all graphs are captured anew where one of its weights has moved
    capture: CudaCapture
    option: str  # what a user leaves out to do without
    graphs: dict[Hashable, _Graph] = dataclasses.field(default_factory=dict)  # by shapes of inputs
    _places: list[int] = dataclasses.field(default_factory=list)

    def __call__(self, inputs: Any) -> Any:
        places = [owned[name].data_ptr() for owned, name in self._weights]
        if places != self._places:
            self.forget()
            self._places = places
        leaves = _leaves(inputs)
        key = (self.module.training, *map(_kind, leaves))
        if key not in self.graphs:
            if len(self.graphs) >= MOST:
                del self.graphs[next(iter(self.graphs))]
            self.graphs[key] = self._captured(inputs)
        graph = self.graphs[key]
        for own, given in zip(graph.inputs, leaves, strict=True):
            if isinstance(given, Tensor):
                own.copy_(given)
            elif given is not None:
                own.fill_(given)
        graph.replay()
        return graph.output

    def forget(self) -> None:
        """Drops all graphs: something that they read has moved or is about to."""
        self.graphs.clear()

    @cached_property
    def _weights(self) -> list[tuple[dict[str, Any], str]]:
        """Where the module has its weights and buffers: a walk through it takes too long."""
        owners = [own for m in self.module.modules() for own in (m._parameters, m._buffers)]
        return [(own, name) for own in owners for name, x in own.items() if x is not None]

    def _captured(self, inputs: Any) -> _Graph:
        outputs: list[Any] = []
        gradients = torch.is_grad_enabled()
        # What is made in inference mode can't be written to outside of it.
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            try:
                own = _map(self._own, inputs)
                with self.capture.warming_up():
                    for _ in range(WARM_UPS):
                        kept = self.warm_up(own)
                replay = self.capture(lambda: outputs.append(self.work(own)))
            except RuntimeError as error:
                raise self._explained(error) from None
        return _Graph(_leaves(own), outputs[-1], replay, kept)

    def _explained(self, error: RuntimeError) -> RuntimeError | UserError:
        """What went wrong first: the end of a capture that failed fails too."""
        while isinstance(error.__context__, RuntimeError):
            error = error.__context__
        if memory_wanted(error) is not None:
            return error
        first = str(error).strip().partition("\n")[0]
        return UserError(f"{self.option}: not possible here ({first}); leave it out")

    def _own(self, x: Tensor | float | None) -> Tensor | None:
        """A place of the graph's own for a part of the inputs."""
        if isinstance(x, Tensor):
            return x.detach().clone(memory_format=torch.contiguous_format)
        if x is None:
            return None
        return torch.full((), x, device=self.capture.device, dtype=torch.float32)


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """The same dataclasses and lists with other leaves."""
    if isinstance(value, list):
        return [_map(function, one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        changed = {name: _map(function, getattr(value, name)) for name in names}
        return dataclasses.replace(value, **changed)
    return function(value)


def _leaves(value: Any) -> list[Any]:
    """In order."""
    found: list[Any] = []
    _map(found.append, value)
    return found


def _kind(x: Tensor | float | None) -> tuple[object, ...]:
    """Equal for leaves that can take each other's place."""
    return (x.shape, x.dtype) if isinstance(x, Tensor) else (x is None,)
