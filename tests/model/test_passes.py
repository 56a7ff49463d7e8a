"""The passes around a linear layer's products: GELU, its gradient, the transpose, the sums."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from helpers import needs_avx512, needs_compiler
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fluxsmith.model import linear as layers
from fluxsmith.model import onednn, passes

pytestmark = [needs_compiler, needs_avx512]
ROWS = [1, 15, 16, 35]


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_they_serve_here() -> None:
    assert passes.serve(some(3), (16, 48))
    assert not passes.serve(some(3), (16, 40))
    with FakeTensorMode() as mode:
        assert not passes.serve(mode.from_tensor(some(3)), (16, 48))


def test_gelu_is_gelu() -> None:
    x = torch.cat((torch.linspace(-30, 30, 16_000), torch.tensor([0.0, 1e-30, 1e30, -1e38] * 4)))
    exact = F.gelu(x.double(), approximate="tanh")
    torch.testing.assert_close(passes.gelu(x).double(), exact, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(number: float) -> None:
    x = torch.zeros(1, 32)
    x[0, 5] = number
    ((through,), transposed, sums) = passes.backward([torch.ones(1, 32)], x, True)
    for found in (passes.gelu(x), through, transposed, sums):
        assert (~found.isfinite()).flatten().nonzero().tolist() == [[5]]


def test_far_below_zero_nothing_comes_through() -> None:
    x = -(10.0 ** torch.linspace(1.5, 18, 16))[None]
    ((through,), _, _) = passes.backward([torch.ones(1, 16)], x, True)
    assert not through.any()


def test_what_is_asked_for_late_is_still_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way forward had these passes, and the way back has not."""
    monkeypatch.setattr(onednn, "WORTH", 0)
    monkeypatch.setattr(onednn, "ONEDNN_IS_QUICKER", True)
    layer, x = layers.Linear(12, 32), some(3, 7, 12).requires_grad_()
    exact = torch.autograd.grad(
        F.gelu(F.linear(x, layer.weight, layer.bias), approximate="tanh").sum(), x
    )
    y = layer(x, gelu=True)
    monkeypatch.setattr(passes, "serve", lambda *_: False)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("sizes", [(16,), (48, 64)])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_backward_is_that_of_exact_arithmetic(
    rows: int, sizes: Sequence[int], gelu: bool, cut: bool
) -> None:
    gradients = [some(rows, size + 3, seed=size)[:, :size] for size in sizes]
    if not cut:
        gradients = [g.contiguous() for g in gradients]
    before = 3 * some(rows, sizes[-1], seed=1) if gelu else None
    exact = [g.double() for g in gradients]
    if before is not None:
        exact[-1] = torch.ops.aten.gelu_backward(exact[-1], before.double(), approximate="tanh")
    through, transposed, sums = passes.backward(gradients, before, True)
    for one, other in zip(through, exact, strict=True):
        assert one.is_contiguous()
        torch.testing.assert_close(one.double(), other, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(transposed, torch.cat(through, dim=1).t(), atol=0, rtol=0)
    torch.testing.assert_close(sums.double(), torch.cat(exact, dim=1).sum(0), atol=1e-5, rtol=1e-5)
    again, none, same = passes.backward(gradients, before, False)
    assert none is None
    assert all(map(torch.equal, (*again, same), (*through, sums)))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            through, *others = passes.backward([some(35, 64)], some(35, 64, seed=1), True)
            found.append([passes.gelu(some(64, 16)), *through, *others])
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@pytest.mark.parametrize("wanted", ["everything", "the input", "the weight"])
def test_a_layer_with_gelu_is_the_same_either_way(
    wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "WORTH", 0)
    monkeypatch.setattr(onednn, "ONEDNN_IS_QUICKER", True)
    found = []
    for serves in (True, False):
        if not serves:
            monkeypatch.setattr(passes, "serve", lambda *_: False)
        layer = layers.Linear(12, 48)
        with torch.no_grad():
            layer.weight.copy_(some(48, 12, seed=1))
            layer.bias.copy_(some(48, seed=2))
        layer.weight.requires_grad_(wanted != "the input")
        layer.bias.requires_grad_(wanted == "everything")
        x = some(3, 7, 12).requires_grad_(wanted != "the weight")
        first, last = layer(x, sizes=(16, 32), gelu=True)
        torch.autograd.backward((first, last), (some(3, 7, 16, seed=3), some(3, 7, 32, seed=4)))
        found.append((first, last, x.grad, layer.weight.grad, layer.bias.grad))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
