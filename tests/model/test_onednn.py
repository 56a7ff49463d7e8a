"""Linear layers by oneDNN: the same numbers as torch's own, forward and backward."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fluxsmith.model import linear as layers
from fluxsmith.model import onednn
from tests.flux_at_random import flux_at_random, inputs, tiny_params

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, onednn._OPERATOR),
    reason="this build of torch has no oneDNN",
)
SIZES = [(20,), (5, 15)]
WANTED = [(True, True, True), (False, True, True), (True, False, False), (True, True, False)]


def some(*shape: int, seed: int, wants_gradient: bool = False) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.requires_grad_(wants_gradient)


@needs_onednn
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("width", [12, 40])  # narrower and wider than the output
def test_values_and_gradients_are_those_of_torch(
    sizes: tuple[int, ...], wanted: tuple[bool, bool, bool], width: int
) -> None:
    x = some(3, 7, width, seed=0, wants_gradient=wanted[0])
    weight = some(20, width, seed=1, wants_gradient=wanted[1])
    bias = some(20, seed=2, wants_gradient=wanted[2])
    ours = onednn.differentiable_linear(x, weight, bias, sizes)
    theirs = plain_linear(x, weight, bias, sizes)
    along = [some(3, 7, size, seed=3 + i) for i, size in enumerate(sizes)]
    to = [t for t, want in zip((x, weight, bias), wanted, strict=True) if want]
    for one, other in zip(
        (*ours, *torch.autograd.grad(ours, to, along)),
        (*theirs, *torch.autograd.grad(theirs, to, along)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@needs_onednn
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("width", [12, 40])
def test_compiled_too(sizes: tuple[int, ...], wanted: tuple[bool, bool, bool], width: int) -> None:
    def gradients(layer: Callable[..., tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        x = some(3, 7, width, seed=0, wants_gradient=wanted[0])
        weight = some(20, width, seed=1, wants_gradient=wanted[1])
        bias = some(20, seed=2, wants_gradient=wanted[2])
        to = [t for t, want in zip((x, weight, bias), wanted, strict=True) if want]
        along = [some(3, 7, size, seed=3 + i) for i, size in enumerate(sizes)]
        return torch.autograd.grad(layer(x, weight, bias, sizes), to, along)

    # As far as the tracing goes, which is what decides how the gradient is computed.
    torch.compiler.reset()
    traced = torch.compile(onednn.differentiable_linear, backend="aot_eager", fullgraph=True)
    for one, other in zip(gradients(traced), gradients(plain_linear), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def plain_linear(
    x: Tensor, weight: Tensor, bias: Tensor, sizes: tuple[int, ...]
) -> tuple[Tensor, ...]:
    return F.linear(x, weight, bias).split(sizes, dim=-1)


@needs_onednn
def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    x = some(4, 8, seed=0, wants_gradient=True)
    weight = some(8, 8, seed=1, wants_gradient=True)
    (y,) = onednn.differentiable_linear(x, weight, None, (8,))
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@needs_onednn
@pytest.mark.parametrize("bias", [None, some(20, seed=2)])
def test_gelu_inside_the_product_and_joined_inputs(bias: Tensor | None) -> None:
    x, weight = some(3, 7, 12, seed=0), some(20, 12, seed=1)
    first, last = onednn.linear(x, weight, bias, (5, 15), gelu=True)
    plain = F.linear(x, weight, bias)
    torch.testing.assert_close(first, plain[..., :5], atol=1e-5, rtol=1e-5)
    expected = F.gelu(plain[..., 5:], approximate="tanh")
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=1e-5)
    joined = onednn.joined_linear(x.split((4, 8), dim=-1), weight, bias)
    torch.testing.assert_close(joined, plain, atol=1e-5, rtol=1e-5)


@needs_onednn
@pytest.mark.parametrize("gradients", [True, False])
def test_the_network_is_the_same_either_way(
    gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = flux_at_random(tiny_params())
    given = inputs(network.params)
    outputs = []
    monkeypatch.setattr(onednn, "WORTH", 0)
    for quicker in (False, True):
        monkeypatch.setattr(onednn, "ONEDNN_IS_QUICKER", quicker)
        with torch.set_grad_enabled(gradients):
            outputs.append([network(**given).detach()])
        if gradients:
            network.zero_grad()
            network(**given).square().mean().backward()
            outputs[-1] += [p.grad for p in network.parameters() if p.grad is not None]
    assert len(outputs[0]) == (1 + len(list(network.parameters())) if gradients else 1)
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("AuthenticAMD", "fma avx2 avx512f avx512bw", True),
        ("AuthenticAMD", "fma avx2", False),
        ("GenuineIntel", "fma avx2 avx512f", False),
    ],
)
@needs_onednn
def test_the_processor_decides(vendor: str, flags: str, expected: bool, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n")
    assert onednn.onednn_is_quicker(info) is expected


def test_where_no_processor_is_described_torch_decides(tmp_path: Path) -> None:
    assert not onednn.onednn_is_quicker(tmp_path / "none")


def test_small_products_and_other_types_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "ONEDNN_IS_QUICKER", True)
    large = torch.empty(1 << 12, 64, device="cpu"), torch.empty(64, 64)
    x, weight = large
    assert onednn.worth_it((x,), weight)
    assert onednn.worth_it(x.split(32, dim=1), weight)
    assert not onednn.worth_it((x[:8],), weight)
    assert not onednn.worth_it((x.bfloat16(),), weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not onednn.worth_it((x,), weight)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not onednn.worth_it((x,), weight)


def test_gelu_by_the_exponential_is_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-30, 30, 10_001, dtype=torch.float64)
    expected = F.gelu(x, approximate="tanh")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(layers._gelu(x), expected, atol=1e-12, rtol=1e-12)


@needs_onednn
def test_the_operators_keep_torchs_contract() -> None:
    operators = torch.ops.fluxsmith
    x, weight, bias = some(3, 7, 12, seed=0), some(20, 12, seed=1), some(20, seed=2)
    gradients = [some(3, 7, size, seed=3) for size in (5, 15)]
    left = some(20, 21, seed=4)
    tests = ("test_schema", "test_faketensor")
    for operator, arguments in (
        (operators.linear.default, (x, weight, bias, [5, 15], True)),
        (operators.linear.default, (x, weight, None, [20], False)),
        (operators.joined_linear.default, ([x[..., :4], x[..., 4:]], weight, bias)),
        (operators.linear_backward.default, (gradients, None, x, weight, True, True)),
        (operators.linear_backward.default, (gradients, left, x, weight, True, True)),
        (operators.linear_backward.default, (gradients, None, x, weight, False, False)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=tests)


@needs_onednn
def test_compilers_take_the_operators_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "WORTH", 0)
    monkeypatch.setattr(onednn, "ONEDNN_IS_QUICKER", True)
    plain = layers.Linear(12, 20)
    compiled = torch.compile(plain, backend="aot_eager", fullgraph=True, dynamic=False)
    found = []
    for layer in (plain, compiled):
        x = some(3, 7, 12, seed=0, wants_gradient=True)
        first, last = layer(x, sizes=(5, 15), gelu=True)
        (first.square().sum() + last.square().sum()).backward()
        found.append((first, last, x.grad, plain.weight.grad, plain.bias.grad))
        plain.zero_grad()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_layer_calls_its_hooks_in_every_use() -> None:
    layer = layers.Linear(12, 20)
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            layer(some(2, 12, seed=0), sizes=(5, 15), gelu=True)
            layer(some(2, 4, seed=0), some(2, 8, seed=1))
    assert len(calls) == 4
