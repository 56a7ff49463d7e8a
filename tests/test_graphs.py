"""Work captured and replayed: what it reads anew, what it holds on to, and where it can't be."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from captured_operations import ByOperations
from torch import Tensor, nn

from fluxsmith.errors import UserError
from fluxsmith.graphs import MOST, CudaCapture, Graphed


@dataclass(frozen=True)
class Given:
    x: Tensor
    more: list[Tensor | None]
    factor: float | Tensor


def combined(given: Given) -> Tensor:
    first, second = given.more
    assert first is not None
    return given.x * given.factor + first + (0 if second is None else second.sum())


Work = Callable[..., Any]


def graphed(work: Work, capture: Any, warm_up: Work | None = None, **more: Any) -> Graphed:
    """Of work that needs no weights."""
    given = {"module": nn.Identity(), "mode": lambda: None, "option": "graphs", **more}
    return Graphed(work, warm_up or work, capture=capture, **given)


@pytest.fixture
def capture(device: torch.device) -> ByOperations | CudaCapture:
    return CudaCapture(device) if device.type == "cuda" else ByOperations()


def given(n: int, seed: int, second: bool, device: torch.device) -> Given:
    draw = torch.Generator().manual_seed(seed)
    x, one, other = torch.randn(3, n, generator=draw).to(device)
    return Given(x, [one, other if second else None], float(seed))


def test_what_is_replayed_is_the_work_on_other_inputs(device, capture):
    calls = []

    def work(inputs: Given) -> Tensor:
        calls.append(inputs)
        return combined(inputs)

    by_graphs = graphed(work, capture)
    for seed in range(4):
        for n, second in [(3, True), (5, True), (3, False)]:
            inputs = given(n, seed, second, device)
            torch.testing.assert_close(by_graphs(inputs), combined(inputs))
    assert len(calls) == 9  # two to warm up and a capture, for each of three shapes


def test_a_stride_is_no_shape_of_its_own(device, capture):
    by_graphs = graphed(lambda x: x[0] * 2, capture)
    table = torch.arange(12.0, device=device).view(3, 4)
    for x in (table, table[:1].expand(3, 4), table.t().reshape(4, 3).t()):
        assert torch.equal(by_graphs([x]), x * 2)


def test_what_moved_is_met_where_it_is(device, capture):
    """Written to in place, moved, and another in its place."""
    module = nn.Linear(3, 1, bias=False, device=device)

    def work(inputs: list[Tensor]) -> Tensor:
        return inputs[0] * module.weight.detach()[0]

    by_graphs, x = graphed(work, capture, module=module), torch.ones(3, device=device)
    kept = []  # so that the next has another place
    for value in (1.0, 2.0, 7.0, 9.0):
        new = torch.full((1, 3), value, device=device)
        if value == 2:
            module.weight.data.copy_(new)
        elif value == 9:
            kept.append(module.weight)
            module.weight = nn.Parameter(new)
        else:
            kept.append(module.weight.data)
            module.weight.data = new
        for _ in range(2):
            assert by_graphs([x]).tolist() == [value] * 3


def test_a_mode_has_graphs_of_its_own(device, capture):
    factor = [1.0]
    by_graphs = graphed(lambda x: x[0] * factor[0], capture, mode=lambda: factor[0])
    for factor[0] in (2.0, 3.0, 2.0):
        assert by_graphs([torch.ones(2, device=device)]).tolist() == [factor[0]] * 2
    assert by_graphs.count == 2


def test_graphs_made_in_inference_mode_serve_outside(device, capture):
    by_graphs = graphed(lambda x: x[0] * 2, capture)
    with torch.inference_mode():
        assert by_graphs([torch.ones(2, device=device)]).tolist() == [2, 2]
    with torch.no_grad():
        assert by_graphs([torch.full((2,), 4.0, device=device)]).tolist() == [8, 8]
    assert by_graphs.count == 1


def test_shapes_beyond_the_limit_go_without_and_it_is_said(device, capture, caplog):
    """On the terms of a graph: numbers are tensors."""
    numbers = []

    def work(inputs: list[Any]) -> Tensor:
        numbers.append(inputs[1])
        return inputs[0] + inputs[1]

    by_graphs = graphed(work, capture)
    for n in range(1, MOST + 4):
        assert by_graphs([torch.zeros(n, device=device), 1.5]).tolist() == [1.5] * n
    assert by_graphs.count == MOST
    assert {(x.dtype, x.shape, x.device.type) for x in numbers} == {
        (torch.float32, torch.Size(), device.type)
    }
    (record,) = caplog.records
    assert record.getMessage() == "CUDA graphs for 16 shapes are kept; others go without"


def test_work_that_looks_at_a_number_is_one_line():
    """By the stand-in alone: torch isn't of much use after a capture that failed on a GPU."""
    by_graphs = graphed(lambda x: x[0] if float(x[0].sum()) > 0 else -x[0], ByOperations())
    with pytest.raises(UserError) as caught:
        by_graphs([torch.ones(3)])
    assert str(caught.value) == (
        "graphs: not possible here (aten._local_scalar_dense.default looks at a number on the "
        "device); leave it out"
    )


def test_running_out_of_memory_is_said_as_such():
    """Also where the end of the capture fails for it."""

    class Full(ByOperations):
        def __call__(self, work: Work) -> Work:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")

    with pytest.raises(torch.OutOfMemoryError):
        graphed(lambda x: x[0], Full())([torch.ones(3)])


def test_the_stand_in_is_as_strict_as_a_gpu():
    """A number from Python stays what it was; a capture changes nothing; a look is an error."""
    capture, x, passed = ByOperations(), torch.zeros(3), [1.0]
    replay = capture(lambda: x.add_(passed[0]))
    assert x.tolist() == [0, 0, 0]
    passed[0] = 5.0
    replay()
    replay()
    assert x.tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="looks at a number"):
        capture(lambda: x.add_(float(x.sum())))
    assert x.tolist() == [2, 2, 2]
