"""Work on a GPU that is captured once for each shape of its inputs and then replayed: CUDA graphs.

A small network's kernels take less time than the host needs to launch them; a graph launches them
all at once. It holds kernels and the places in memory that they read and write. So inputs are
copied into places of its own, and whatever else it reads has to stay where it is.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fluxsmith.device import memory_wanted

Inputs = TypeVar("Inputs")
Output = TypeVar("Output")

log = logging.getLogger(__name__)

MOST = 16  # graphs at a time; inputs of more shapes are worked on without
WARM_UPS = 2  # runs before the capture: the first makes tables and workspaces, and compiles


class Capture(Protocol):
    def warming_up(self) -> AbstractContextManager[None]:
        """What comes before the capture of some work, to prepare it, is done inside."""
        ...

    def __call__(self, work: Callable[[], object]) -> Callable[[], object]:
        """Calls the work, which computes nothing that counts yet; returns what computes it."""
        ...


class CudaCapture:
    """Graphs that share their memory: they never run at once, and no output is used past the next
    replay (torch's notes on CUDA semantics, "Sharing memory across captures")."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        # On the stream of the capture: autograd adds gradients up on the stream where it first met
        # a weight, and libraries keep a workspace for each stream.
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def __call__(self, work: Callable[[], object]) -> Callable[[], object]:
        graph = torch.cuda.CUDAGraph()
        with (
            # torch leaves the stream of the capture in place where one fails.
            torch.cuda.stream(torch.cuda.current_stream(self._stream.device)),
            # A thread that saves a checkpoint meanwhile may do what can't be captured.
            torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ),
        ):
            work()
        return graph.replay


@dataclasses.dataclass(frozen=True)
class _Graph(Generic[Inputs, Output]):
    inputs: Inputs
    output: Output
    replay: Callable[[], object]
    kept: object  # what it reads beside


class Graphed(Generic[Inputs, Output]):
    """Work of inputs on a GPU, by CUDA graphs where these can be had.

    Inputs are dataclasses or lists of tensors, numbers and None, one in the other; the work meets
    numbers as float32 tensors () on the device. The output may be used until the next call.
    """

    def __init__(
        self,
        work: Callable[[Inputs], Output],
        warm_up: Callable[[Inputs], object],
        places: Callable[[], list[int]],
        capture: Capture,
        device: torch.device,
    ) -> None:
        """`warm_up` does the work for inputs that don't matter, and leaves no trace; what it
        returns lives as long as the graph. All graphs are captured anew where `places`, such as
        those of the weights, are no longer what they were.
        """
        self.work = work
        self._warm_up = warm_up
        self._find_places = places
        self._capture = capture
        self._device = device
        self._possible = True
        self._places: list[int] = []
        self._graphs: dict[Any, _Graph[Inputs, Output]] = {}

    def __call__(self, inputs: Inputs) -> Output:
        graph = self._graph(inputs)
        if graph is None:
            return self.work(inputs)
        for own, given in zip(_leaves(graph.inputs), _leaves(inputs), strict=True):
            if isinstance(given, Tensor):
                own.copy_(given)
            else:
                own.fill_(given)
        graph.replay()
        return graph.output

    def forget(self) -> None:
        """Drops all graphs: something that they read has moved or is about to."""
        self._graphs.clear()

    def _graph(self, inputs: Inputs) -> _Graph[Inputs, Output] | None:
        if not self._possible:
            return None
        places = self._find_places()
        if places != self._places:
            self.forget()
            self._places = places
        shapes = _shapes(inputs)
        if shapes not in self._graphs:
            if len(self._graphs) == MOST:
                return None
            try:
                self._graphs[shapes] = self._captured(inputs)
            except RuntimeError as error:
                if memory_wanted(error) is not None:
                    raise
                self._possible = False
                log.warning("no CUDA graphs here, so it is slower: %s", _reason(error))
                return None
        return self._graphs[shapes]

    def _captured(self, inputs: Inputs) -> _Graph[Inputs, Output]:
        own = _map(self._own, inputs)
        with self._capture.warming_up():
            for _ in range(WARM_UPS):
                kept = self._warm_up(own)
        outputs: list[Output] = []
        replay = self._capture(lambda: outputs.append(self.work(own)))
        return _Graph(own, outputs[-1], replay, kept)

    def _own(self, x: Tensor | float) -> Tensor:
        if isinstance(x, Tensor):
            return x.clone(memory_format=torch.contiguous_format)
        return torch.full((), x, device=self._device, dtype=torch.float32)


def places_of(module: nn.Module) -> Callable[[], list[int]]:
    """Says where a module's parameters are, without a walk through it each time."""
    slots = [
        (inner._parameters, name)
        for inner in module.modules()
        for name, p in inner._parameters.items()
        if p is not None
    ]

    def places() -> list[int]:
        return [p.data_ptr() for d, name in slots if (p := d[name]) is not None]

    return places


def _reason(error: BaseException) -> str:
    """What went wrong first: the end of a capture that failed fails too."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _map(function: Callable[[Tensor | float], Any], value: Any) -> Any:
    """The same dataclasses and lists with other things in the place of tensors and numbers."""
    if value is None:
        return None
    if isinstance(value, list):
        return [_map(function, one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        changed = {name: _map(function, getattr(value, name)) for name in names}
        return dataclasses.replace(value, **changed)
    return function(value)


def _leaves(value: Any) -> list[Any]:
    """The tensors and numbers in it, in order."""
    found: list[Any] = []
    _map(found.append, value)
    return found


def _shapes(value: Any) -> Any:
    """Equal for inputs that can take each other's place."""
    if value is None:
        return None
    if isinstance(value, list):
        return tuple(_shapes(one) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return tuple(_shapes(getattr(value, field.name)) for field in dataclasses.fields(value))
    return (value.shape, value.dtype) if isinstance(value, Tensor) else float
