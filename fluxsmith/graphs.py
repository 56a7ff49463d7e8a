"""Work on a GPU that is captured once for each shape of its inputs and then replayed: CUDA graphs.

A small network's kernels take less time than the host needs to launch them; a graph launches them
all at once. It holds kernels and the places in memory that they read and write. So inputs are
copied into places of its own, and whatever else it reads has to stay where it is.
"""

import dataclasses
import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fluxsmith.device import memory_wanted
from fluxsmith.errors import UserError

Inputs = TypeVar("Inputs")
Output = TypeVar("Output")
Leaf = Tensor | float | None  # of inputs

log = logging.getLogger(__name__)

MOST = 16  # graphs of some work; inputs of more shapes go without
WARM_UPS = 2  # runs before the capture: the first makes tables and workspaces, and compiles


class Capture(Protocol):
    device: torch.device

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
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def warming_up(self) -> Iterator[None]:
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
class _Graph(Generic[Output]):
    inputs: list[Tensor | None]
    output: Output
    replay: Callable[[], object]
    kept: object  # what it reads beside


class Graphed(Generic[Inputs, Output]):
    """Work of inputs on a GPU, by CUDA graphs.

    Inputs are dataclasses or lists of tensors, numbers and None, one in the other; the work meets
    numbers as float32 tensors () on the device. The output may be used until the next call.

    Work that can't be captured is a UserError: torch may then be unable to capture anything more,
    or to free memory, so that this process had better end.
    """

    def __init__(
        self,
        work: Callable[[Inputs], Output],
        warm_up: Callable[[Inputs], object],
        module: nn.Module,
        mode: Callable[[], Hashable],
        capture: Capture,
        option: str,
    ) -> None:
        """`warm_up` does the work for inputs that don't matter, and leaves no trace; what it
        returns lives as long as the graph. `mode` is what the work depends on beside its inputs:
        each has graphs of its own. All are captured anew where a weight of the module has moved.
        `option` is what a user leaves out to do without.
        """
        self.work = work
        self._warm_up = warm_up
        self._module = module
        self._mode = mode
        self._capture = capture
        self._option = option
        self._slots: list[tuple[dict[str, Any], str]] = []
        self._places: list[int] = []
        self._full = False  # whether that was said
        self._graphs: dict[Hashable, _Graph[Output]] = {}

    @property
    def count(self) -> int:
        """The graphs there are."""
        return len(self._graphs)

    def __call__(self, inputs: Inputs) -> Output:
        leaves = _leaves(inputs)
        graph = self._graph(inputs, leaves)
        if graph is None:
            return self.work(_map(self._number, inputs))
        for own, given in zip(graph.inputs, leaves, strict=True):
            if own is None:
                continue
            if isinstance(given, Tensor):
                own.copy_(given)
            else:
                own.fill_(given)
        graph.replay()
        return graph.output

    def forget(self) -> None:
        """Drops all graphs: something that they read has moved or is about to."""
        self._graphs.clear()

    def _graph(self, inputs: Inputs, leaves: list[Any]) -> _Graph[Output] | None:
        places = self._find_places()
        if places != self._places:
            self.forget()
            self._places = places
        key = (self._mode(), *map(_kind, leaves))
        if key not in self._graphs:
            if len(self._graphs) == MOST:
                if not self._full:
                    log.warning("CUDA graphs for %d shapes are kept; others go without", MOST)
                self._full = True
                return None
            gradients = torch.is_grad_enabled()
            # What is made in inference mode can't be written to outside of it.
            with torch.inference_mode(False), torch.set_grad_enabled(gradients):
                try:
                    self._graphs[key] = self._captured(inputs)
                except RuntimeError as error:
                    raise self._explained(error) from None
        return self._graphs[key]

    def _find_places(self) -> list[int]:
        """Where the module's weights and buffers are, without a walk through it each time."""
        if not self._slots:
            for inner in self._module.modules():
                for owned in (inner._parameters, inner._buffers):
                    self._slots += [(owned, name) for name, x in owned.items() if x is not None]
        return [owned[name].data_ptr() for owned, name in self._slots]

    def _explained(self, error: RuntimeError) -> RuntimeError | UserError:
        """What went wrong first: the end of a capture that failed fails too."""
        first: BaseException = error
        while isinstance(first.__context__, RuntimeError):
            first = first.__context__
        if isinstance(first, RuntimeError) and memory_wanted(first) is not None:
            return first
        lines = str(first).strip().splitlines() or [type(first).__name__]
        return UserError(f"{self._option}: not possible here ({lines[0]}); leave it out")

    def _captured(self, inputs: Inputs) -> _Graph[Output]:
        own = _map(self._own, inputs)
        with self._capture.warming_up():
            for _ in range(WARM_UPS):
                kept = self._warm_up(own)
        outputs: list[Output] = []
        replay = self._capture(lambda: outputs.append(self.work(own)))
        return _Graph(_leaves(own), outputs[-1], replay, kept)

    def _own(self, x: Leaf) -> Tensor | None:
        own = self._number(x)
        if own is None:
            return None
        return own.detach().clone(memory_format=torch.contiguous_format)

    def _number(self, x: Leaf) -> Tensor | None:
        """A number as the work meets it."""
        if x is None or isinstance(x, Tensor):
            return x
        return torch.full((), x, device=self._capture.device, dtype=torch.float32)


def _map(function: Callable[[Leaf], Any], value: Any) -> Any:
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


def _kind(x: Leaf) -> tuple[object, ...]:
    """Equal for leaves that can take each other's place."""
    return (x.shape, x.dtype) if isinstance(x, Tensor) else (x is None,)
