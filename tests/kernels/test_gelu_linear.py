"""Linear layers with GELU, by oneDNN and by torch's own products: the same numbers as torch's."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fluxsmith.kernels.cpu import gelu_linear as layers
from fluxsmith.kernels.cpu import onednn

pytestmark = pytest.mark.usefixtures("vectors")


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exactly(
    x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int], gelu: bool
) -> tuple[Tensor, ...]:
    """In float64."""
    y = x.double() @ weight.double().mT + (0 if bias is None else bias.double())
    *others, last = y.split(list(sizes), dim=-1)
    return (*others, F.gelu(last, approximate="tanh") if gelu else last)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("sizes", [(32,), (16, 48)])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("width", [12, 80])  # narrower and wider than the output
@pytest.mark.parametrize("wanted", ["everything", "the input", "the weight", "no bias"])
def test_values_and_gradients_are_those_of_exact_arithmetic(
    sizes: tuple[int, ...], gelu: bool, width: int, wanted: str
) -> None:
    n = sum(sizes)
    found = []
    for layer in (layers.gelu_linear, exactly):
        x = some(3, 7, width).requires_grad_(wanted != "the weight")
        weight = some(n, width, seed=1).requires_grad_(wanted != "the input")
        bias = None if wanted == "no bias" else some(n, seed=2)
        if bias is not None:
            bias.requires_grad_(wanted == "everything")
        outs = layer(x, weight, bias, sizes, gelu)
        along = [some(3, 7, size, seed=3).to(outs[0].dtype) for size in sizes]
        leaves = [y for y in (x, weight, bias) if y is not None and y.requires_grad]
        found.append((*outs, *torch.autograd.grad(outs, leaves, along)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=2e-5, rtol=2e-5)
    with torch.no_grad():
        for one, other in zip(layers.gelu_linear(x, weight, bias, sizes, gelu), outs, strict=True):
            torch.testing.assert_close(one.double(), other, atol=2e-5, rtol=2e-5)


@pytest.mark.usefixtures("products")
def test_second_derivatives_are_those_of_torchs_operations() -> None:
    found = []
    for layer in (layers.gelu_linear, layers.by_torch):
        leaves = [some(3, 12).requires_grad_(), some(32, 12, seed=1).requires_grad_()]
        outs = layer(*leaves, some(32, seed=2), (16, 16), True)
        total = sum(out.square().sum() for out in outs)
        first = torch.autograd.grad(total, leaves, create_graph=True)
        second = torch.autograd.grad(sum(one.square().sum() for one in first), leaves)
        found.append([x.detach() for x in (*first, *second)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_layer_of_two_inputs_is_that_of_both_joined(bias: bool) -> None:
    x, weight, b = some(3, 7, 12), some(64, 12, seed=1), some(64, seed=2) if bias else None
    (joined,) = exactly(x, weight, b, (64,), False)
    found = onednn.joined_linear(x.split((4, 8), dim=-1), weight, b)
    torch.testing.assert_close(found.double(), joined, atol=1e-5, rtol=1e-5)


def gelu(x: Tensor) -> Tensor:
    """By way of a layer that passes each number on."""
    return layers.gelu_linear(x[:, None], torch.eye(64)[:, :1], None, (64,))[0][:, 0]


@torch.no_grad()
def test_gelu_is_gelu_far_out_too() -> None:
    x = torch.cat((torch.linspace(-30, 30, 16_000), torch.tensor([0.0, 1e-30, 1e30, -1e38] * 4)))
    exact = F.gelu(x.double(), approximate="tanh")
    torch.testing.assert_close(gelu(x).double(), exact, atol=1e-6, rtol=1e-6)
    far = -(10.0 ** torch.linspace(1.5, 18, 16))[None]
    (through,), _, _ = layers.backward_passes([torch.ones(1, 16)], far, True)
    assert not through.any()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(number: float) -> None:
    x = torch.zeros(1, 32)
    x[0, 5] = number
    (through,), transposed, sums = layers.backward_passes([torch.ones(1, 32)], x, True)
    assert transposed is not None
    for found in (gelu(x[0]), through[0], transposed[:, 0], sums):
        assert (~found.isfinite()).nonzero().tolist() == [[5]]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("rows", [1, 16, 35])
def test_passes_of_backward_are_the_same_bits_however_gradients_lie_and_with_any_threads(
    rows: int,
) -> None:
    cut = [some(rows, size + 3, seed=size)[:, :size] for size in (48, 64)]
    before = 3 * some(rows, 64, seed=1)
    exact = [g.double() for g in cut]
    exact[-1] = torch.ops.aten.gelu_backward(exact[-1], before.double(), approximate="tanh")
    found = []
    for gradients, threads in ((cut, 1), ([g.contiguous() for g in cut], 5)):
        torch.set_num_threads(threads)
        through, transposed, sums = layers.backward_passes(gradients, before, True)
        assert torch.equal(transposed, torch.cat(through, dim=1).t())
        again, none, same = layers.backward_passes(gradients, before, False)
        assert none is None
        found += [(*through, sums), (*again, same)]
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))
    for one, other in zip(found[0], (*exact, torch.cat(exact, dim=1).sum(0)), strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-5)


def test_widths_that_fit_no_vector_are_not_served(vectors: str) -> None:
    assert layers.serves((16, 48))
    assert not layers.serves((16, 20))
    assert layers.serves((40,)) is (vectors == "avx2")


@pytest.mark.parametrize(("vendor", "quicker"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_onednn_multiplies_on_amd_with_avx512(vendor, quicker, vectors, tmp_path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fma avx2 avx512f\n")
    assert onednn.onednn_is_quicker(info) is (quicker and vectors == "avx512")
    assert not onednn.onednn_is_quicker(tmp_path / "none")


@pytest.mark.usefixtures("products")
def test_the_operators_keep_torchs_contract() -> None:
    operators = torch.ops.fluxsmith
    x, weight, bias = some(3, 7, 12), some(64, 12, seed=1), some(64, seed=2)
    gradients = [some(3, 7, size, seed=3) for size in (16, 48)]
    tests = ("test_schema", "test_faketensor")
    for operator, arguments in (
        (operators.gelu_linear.default, (x, weight, bias, [16, 48], True, True)),
        (operators.gelu_linear.default, (x, weight, None, [64], False, False)),
        (operators.joined_linear.default, ([x[..., :4], x[..., 4:]], weight, bias)),
        (
            operators.gelu_linear_backward.default,
            (gradients, some(3, 7, 48), x, weight, True, True, True),
        ),
        (
            operators.gelu_linear_backward.default,
            (gradients, None, x, weight, False, False, True),
        ),
    ):
        torch.library.opcheck(operator, arguments, test_utils=tests)
