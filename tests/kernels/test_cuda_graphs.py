"""Work captured and replayed: what it reads anew, what it holds on to, and where it can't be."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from kernels.fake_cuda_graph import ByOperations
from torch import Tensor, nn

from fluxsmith.errors import UserError
from fluxsmith.kernels import cuda_graphs
from fluxsmith.kernels.cuda_graphs import CudaCapture, Graphed

Work = Callable[..., Any]


@dataclass(frozen=True)
class Given:
    x: Tensor
    more: list[Tensor | None]
    factor: float


def graphed(work: Work, capture: Any, module: nn.Module | None = None) -> Graphed:
    return Graphed(work, work, module or nn.Identity(), capture, "graphs")


@pytest.fixture
def capture(device: torch.device) -> ByOperations | CudaCapture:
    return CudaCapture(device) if device.type == "cuda" else ByOperations()


def test_what_is_replayed_is_the_work_on_other_inputs(device, capture):
    def work(given: Given) -> Tensor:
        first, second = given.more
        return given.x * given.factor + first + (0 if second is None else second.sum())

    by_graphs = graphed(work, capture)
    for seed in range(4):
        for n, second in [(3, True), (5, True), (3, False)]:
            numbers = torch.randn(3, n, generator=torch.Generator().manual_seed(seed)).to(device)
            inputs = Given(numbers[0], [numbers[1], numbers[2] if second else None], float(seed))
            torch.testing.assert_close(by_graphs(inputs), work(inputs))
    assert len(by_graphs.graphs) == 3


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

    by_graphs, x = graphed(work, capture, module), torch.ones(3, device=device)
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


def test_training_and_evaluation_have_graphs_of_their_own(device, capture):
    module = nn.Dropout(p=1.0)
    by_graphs = graphed(lambda x: module(x[0]), capture, module)
    for training in (True, False, True):
        module.train(training)
        assert by_graphs([torch.ones(2, device=device)]).tolist() == [1.0 - training] * 2


def test_graphs_made_in_inference_mode_serve_outside(device, capture):
    by_graphs = graphed(lambda x: x[0] * 2, capture)
    with torch.inference_mode():
        assert by_graphs([torch.ones(2, device=device)]).tolist() == [2, 2]
    with torch.no_grad():
        assert by_graphs([torch.full((2,), 4.0, device=device)]).tolist() == [8, 8]
    assert len(by_graphs.graphs) == 1


def test_the_oldest_graph_goes_for_one_more_than_the_limit(device, capture, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MOST", 2)
    by_graphs = graphed(lambda x: x[0] + 1, capture)
    for n in (1, 2, 3, 1):
        assert by_graphs([torch.zeros(n, device=device)]).tolist() == [1.0] * n
        assert len(by_graphs.graphs) <= 2


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

    def full(_: list[Tensor]) -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    with pytest.raises(torch.OutOfMemoryError):
        graphed(full, ByOperations())([torch.ones(3)])
