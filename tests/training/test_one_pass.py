"""One pass of C++ over weights, moments and averages: what torch's passes make of them."""

import ctypes
from collections.abc import Callable

import pytest
import torch
from helpers import needs_avx512, needs_compiler
from torch import Tensor, nn

from fluxsmith.errors import UserError
from fluxsmith.training import one_pass, update
from fluxsmith.training.ema import EMA
from fluxsmith.training.one_pass import OnePass
from fluxsmith.training.update import Pace, Update

LARGEST = 0.5  # of a gradient's norm


class Problem:
    """A few tensors, larger and smaller than what a thread takes at once, and their training."""

    def __init__(
        self, dtype: torch.dtype = torch.float32, betas: tuple[float, float] = (0.8, 0.95)
    ) -> None:
        draw = torch.Generator().manual_seed(0)
        self.module = nn.ParameterList(
            torch.randn(shape, generator=draw).to(dtype) for shape in [(300, 301), (7, 5), (3,), ()]
        )
        groups = [
            {"params": list(self.module[:2]), "weight_decay": 0.1},
            {"params": list(self.module[2:]), "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=0.01, betas=betas, fused=True)
        self.ema = EMA(self.module, 0.9)
        self.update = Update(self.module, self.optimiser, self.ema, LARGEST, waits=True)

    def step(self, n: int) -> Tensor:
        """The norm of its gradient: above LARGEST in one step, below it in the next."""
        draw = torch.Generator().manual_seed(100 + n)
        for p in self.module.parameters():
            p.grad = (10.0 ** -(n % 4) * torch.randn(p.shape, generator=draw)).to(p.dtype)
        norm = self.update.gradient_norm()
        self.in_one_pass = self.update._one_pass is not None
        self.update(self.pace(n), norm, norm.isfinite())
        return norm

    def pace(self, n: int) -> Pace:
        return Pace(rate=0.01, share=self.ema.share(n))

    def state(self) -> list[Tensor]:
        moments = [value for state in self.optimiser.state.values() for value in state.values()]
        return [*(p.detach() for p in self.module), *self.ema.weights.values(), *moments]


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """by_torch(True): torch's passes from now on."""

    def refused(*_: object) -> OnePass:
        raise UserError("by torch")

    def switch(on: bool) -> None:
        monkeypatch.setattr(update, "OnePass", refused if on else OnePass)

    return switch


@needs_compiler
@needs_avx512
def test_there_is_a_library() -> None:
    assert isinstance(one_pass.library(), ctypes.CDLL)


@needs_compiler
@needs_avx512
@pytest.mark.parametrize("betas", [(0.8, 0.95), (0.9, 0.999), (0.99, 0.9999)])
def test_weights_moments_and_averages_are_those_of_exact_arithmetic(
    betas: tuple[float, float], by_torch
) -> None:
    ours, exact = Problem(betas=betas), Problem(torch.float64, betas)
    above = 0
    for n in range(8):
        by_torch(False)
        norm = ours.step(n)
        assert ours.in_one_pass
        by_torch(True)
        torch.testing.assert_close(norm.double(), exact.step(n).double(), atol=0, rtol=1e-6)
        above += bool(norm > LARGEST)
    assert 0 < above < 8
    for one, other in zip(ours.state(), exact.state(), strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=1e-6, rtol=1e-5)


@needs_compiler
@needs_avx512
def test_either_way_goes_on_from_where_the_other_stopped(by_torch) -> None:
    found = []
    for ways in ((True, False, True, False), (False, True, False, True), (True,) * 4):
        problem = Problem()
        for n, way in enumerate(ways):
            by_torch(way)
            problem.step(n)
            assert problem.in_one_pass is not way
        found.append(problem.state())
    for others in found[:2]:
        for one, other in zip(others, found[2], strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@needs_compiler
@needs_avx512
def test_any_number_of_threads_gives_the_same_bits() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            problem = Problem()
            norms = [problem.step(n) for n in range(3)]
            found.append([*norms, *problem.state()])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@needs_compiler
@needs_avx512
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_has_such_a_norm_and_moves_nothing(number: float) -> None:
    problem = Problem()
    problem.step(0)
    before = [x.clone() for x in problem.state()]
    for p in problem.module.parameters():
        p.grad = torch.ones_like(p)
    problem.module[0].grad[299, 300] = number
    norm = problem.update.gradient_norm()
    assert not norm.isfinite()
    problem.update(problem.pace(1), norm, norm.isfinite())
    assert all(map(torch.equal, before, problem.state()))


def averages(problem: Problem) -> dict[nn.Parameter, Tensor]:
    return {p: problem.ema.weights[name] for name, p in problem.module.named_parameters()}


NOT_FOR_IT = {
    "no gradient": "no gradient",
    "a gradient column by column": "row by row",
    "double precision": "float32",
    "a hook": "more than AdamW",
    "a step of its own": "more than AdamW",
    "amsgrad": "more than AdamW",
}


@needs_compiler
@needs_avx512
@pytest.mark.parametrize("what", NOT_FOR_IT)
def test_what_it_can_not_have_is_for_torch(what: str) -> None:
    problem = Problem(torch.float64 if what == "double precision" else torch.float32)
    if what == "amsgrad":
        for group in problem.optimiser.param_groups:
            group["amsgrad"] = True
    heard = []
    problem.step(0)
    if what == "no gradient":
        problem.module[1].grad = None
    elif what == "a gradient column by column":
        problem.module[1].grad = problem.module[1].grad.t().contiguous().t()
    elif what == "a hook":
        problem.optimiser.register_step_pre_hook(lambda *_: heard.append(1))
    elif what == "a step of its own":
        step = problem.optimiser.step
        problem.optimiser.step = lambda: (heard.append(1), step())
    with pytest.raises(UserError, match=NOT_FOR_IT[what]):
        OnePass(problem.optimiser, averages(problem))
    norm = problem.update.gradient_norm()
    assert norm.isfinite()
    before = problem.module[0].detach().clone()
    problem.update(problem.pace(1), norm, norm.isfinite())
    assert not torch.equal(problem.module[0], before)
    assert bool(heard) is what.startswith(("a hook", "a step"))


@needs_compiler
@needs_avx512
def test_autograd_knows_that_weights_have_changed() -> None:
    problem = Problem()
    loss = (problem.module[0].square().sum() * problem.module[1].sum()).sin()
    problem.step(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_averages_of_frozen_weights_move_too() -> None:
    problem = Problem()
    frozen = nn.Parameter(torch.ones(4), requires_grad=False)
    problem.module.append(frozen)
    problem.ema.weights["4"] = torch.zeros(4)
    problem.step(0)
    assert problem.ema.weights["4"].all()


def test_without_a_compiler_torch_takes_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_pass, "library", lambda: "no compiler")
    problem = Problem()
    before = [p.detach().clone() for p in problem.module]
    assert problem.step(0) > LARGEST
    assert not any(map(torch.equal, before, problem.module))
