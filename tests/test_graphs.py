"""Work captured and replayed: what it reads anew, what it holds on to, and where it can't be."""

from dataclasses import dataclass

import pytest
import torch
from captured_operations import ByOperations
from torch import Tensor

from fluxsmith.graphs import MOST, CudaCapture, Graphed

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@dataclass(frozen=True)
class Given:
    x: Tensor
    more: list[Tensor | None]
    factor: float | Tensor


def combined(given: Given) -> Tensor:
    first, second = given.more
    assert first is not None
    return given.x * given.factor + first + (0 if second is None else second.sum())


def nowhere() -> list[int]:
    return []


@pytest.fixture(params=["operations", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device("cuda" if request.param == "cuda" else "cpu")


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

    graphed = Graphed(work, work, nowhere, capture, device)
    for seed in range(4):
        for n, second in [(3, True), (5, True), (3, False)]:
            inputs = given(n, seed, second, device)
            torch.testing.assert_close(graphed(inputs), combined(inputs))
    assert len(calls) == 9  # two to warm up and a capture, for each of three shapes


def test_a_stride_is_no_shape_of_its_own(device, capture):
    graphed = Graphed(lambda x: x[0] * 2, lambda x: None, nowhere, capture, device)
    table = torch.arange(12.0, device=device).view(3, 4)
    for x in (table, table[:1].expand(3, 4), table.t().reshape(4, 3).t()):
        assert torch.equal(graphed([x]), x * 2)


def test_what_moved_is_met_where_it_is(device, capture):
    weight = torch.nn.Parameter(torch.ones(3, device=device))

    def work(inputs: list[Tensor]) -> Tensor:
        return inputs[0] * weight.detach()

    graphed = Graphed(work, work, lambda: [weight.data_ptr()], capture, device)
    x = torch.ones(3, device=device)
    assert graphed([x]).tolist() == [1, 1, 1]
    weight.data.fill_(2)
    assert graphed([x]).tolist() == [2, 2, 2]
    before = weight.data  # lives on, so that the next has another place
    weight.data = torch.full((3,), 7.0, device=device)
    assert graphed([x]).tolist() == [7, 7, 7]
    before.fill_(3)
    assert graphed([x]).tolist() == [7, 7, 7]


def test_shapes_beyond_the_limit_are_worked_on_as_they_come(device, capture):
    graphed = Graphed(lambda x: x[0] + 1, lambda x: None, nowhere, capture, device)
    for n in range(1, MOST + 4):
        assert graphed([torch.zeros(n, device=device)]).tolist() == [1.0] * n
    assert len(graphed._graphs) == MOST


def test_work_that_looks_at_a_number_goes_on_without_graphs(device, capture, caplog):
    def work(inputs: list[Tensor]) -> Tensor:
        return inputs[0] * 2 if float(inputs[0].sum()) > 0 else inputs[0] * 3

    graphed = Graphed(work, work, nowhere, capture, device)
    for value in (1.0, -1.0, 2.0):
        x = torch.full((3,), value, device=device)
        assert torch.equal(graphed([x]), work([x]))
    (record,) = caplog.records
    assert record.getMessage().startswith("no CUDA graphs here, so it is slower: ")


def test_running_out_of_memory_is_no_reason_to_go_on_without(device):
    class Full(ByOperations):
        def __call__(self, work):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    graphed = Graphed(lambda x: x[0], lambda x: None, nowhere, Full(), device)
    with pytest.raises(torch.OutOfMemoryError):
        graphed([torch.ones(3, device=device)])


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
