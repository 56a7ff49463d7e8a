"""Attention in one pass of C++: the same numbers as torch's operations, forward and backward."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from flux_at_random import flux_at_random, inputs, tiny_params
from helpers import needs_avx512, needs_compiler
from torch import Tensor

from fluxsmith.model import fused_attention as fused
from fluxsmith.model.attention import attention_of_projections
from fluxsmith.model.rope import RotaryTable, rotary_table
from fluxsmith.model.streams import QKNorm, Stream, joint_attention

HEADS, BATCH = 3, 2
LENGTHS = [(1,), (15,), (16,), (17,), (1, 16), (5, 30), (0, 4), (40, 2, 23)]
Streams = tuple[list[Tensor], list[Tensor], list[Tensor]]  # projections, scales, scales


def streams_of(lengths: Sequence[int], size: int = 32, seed: int = 0) -> Streams:
    draw = torch.Generator().manual_seed(seed)
    qkv = [torch.randn(BATCH, length, 3 * HEADS * size, generator=draw) for length in lengths]
    scales = [1 + 0.3 * torch.randn(size, generator=draw) for _ in range(2 * len(qkv))]
    return qkv, scales[: len(qkv)], scales[len(qkv) :]


def table_of(length: int, size: int = 32) -> RotaryTable:
    ids = torch.randint(0, 7, (length, 3), generator=torch.Generator().manual_seed(1)).float()
    return rotary_table(ids, (size - 8, 4, 4), 10_000)


def with_gradients(
    attention, streams: Streams, pe: RotaryTable, mask: Tensor | None, dtype: torch.dtype
) -> list[Tensor]:
    """What every stream gets back, and what everything in the streams gets for it."""
    leaves = [x.detach().to(dtype).requires_grad_() for part in streams for x in part]
    outs = attention(*thirds(leaves), tuple(x.to(dtype) for x in pe), mask)
    draw = torch.Generator().manual_seed(2)
    along = [torch.randn(out.shape, generator=draw).to(dtype) for out in outs]
    return [*outs, *torch.autograd.grad(outs, leaves, along)]


def thirds(tensors: Sequence[Tensor]) -> Sequence[Sequence[Tensor]]:
    n = len(tensors) // 3
    return tensors[:n], tensors[n : 2 * n], tensors[2 * n :]


def assert_close(ours: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    assert len(ours) == len(exact)
    for one, other in zip(ours, exact, strict=True):
        scale = max([1e-3, *other.detach().abs().flatten().tolist()])
        torch.testing.assert_close(one.double(), other.double(), atol=2e-6 * scale, rtol=1e-5)


@needs_compiler
@needs_avx512
@pytest.mark.parametrize("size", [16, 48, 64, 128])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_those_of_exact_arithmetic(
    size: int, lengths: tuple[int, ...], masked: bool
) -> None:
    assert fused.why_not(size) == ""
    streams, pe = streams_of(lengths, size), table_of(sum(lengths), size)
    mask = None
    if masked:
        mask = torch.rand(BATCH, sum(lengths), generator=torch.Generator().manual_seed(3)) < 0.7
        mask[:, -1] = True
    ours = with_gradients(fused.attention, streams, pe, mask, torch.float32)
    exact = with_gradients(attention_of_projections, streams, pe, mask, torch.float64)
    assert_close(ours, exact)


@needs_compiler
@needs_avx512
def test_a_masked_token_changes_nothing() -> None:
    streams, pe = streams_of((3, 16)), table_of(19)
    mask = torch.ones(BATCH, 19, dtype=torch.bool)
    mask[:, 1] = False
    before = fused.attention(*streams, pe, mask)
    streams[0][0][:, 1] *= 1e3
    after = fused.attention(*streams, pe, mask)
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[0][:, [0, 2]], after[0][:, [0, 2]])


@needs_compiler
@needs_avx512
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", [0, 1, 2])  # queries, keys, values
def test_what_is_not_finite_stays_so(number: float, part: int) -> None:
    streams, pe = streams_of((17,)), table_of(17)
    streams[0][0][0, 5, part * HEADS * 32] = number
    (out,), reached = fused.attention(*streams, pe, None), slice(5, 6) if part == 0 else slice(None)
    assert not out[0, reached, :32].isfinite().all(dim=-1).any()
    assert out[1].isfinite().all()


@needs_compiler
@needs_avx512
@pytest.mark.parametrize("apart", [1.0, 60.0, 1e4])  # that far from one logit to the next
def test_logits_may_lie_far_apart(apart: float) -> None:
    (qkv,), (q_scale,), k_scales = streams_of((20,))
    streams = [qkv], [apart * q_scale], k_scales
    ours = fused.attention(*streams, table_of(20), None)
    doubled = [[x.double() for x in part] for part in streams]
    pe = tuple(x.double() for x in table_of(20))
    # The logits' own rounding, 1e-7 of them, is felt by the weights.
    torch.testing.assert_close(
        ours[0].double(), attention_of_projections(*doubled, pe, None)[0], atol=1e-5 * apart, rtol=0
    )


@needs_compiler
@needs_avx512
def test_any_number_of_threads_gives_the_same_bits() -> None:
    streams, pe = streams_of((1, 16)), table_of(17)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(with_gradients(fused.attention, streams, pe, None, torch.float32))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@needs_compiler
@needs_avx512
@pytest.mark.parametrize("lengths", [(17,), (1, 16)])
def test_gradients_may_be_cut_from_wider_ones(lengths: tuple[int, ...]) -> None:
    streams, pe = streams_of(lengths), table_of(sum(lengths))
    wide = [torch.randn(BATCH, length, HEADS * 32 + 8) for length in lengths]
    found = []
    for along in (
        [x[..., : HEADS * 32] for x in wide],
        [x[..., : HEADS * 32].contiguous() for x in wide],
        [
            x[..., : HEADS * 32].contiguous().transpose(0, 1).contiguous().transpose(0, 1)
            for x in wide
        ],
        [x[..., : HEADS * 32].transpose(1, 2).contiguous().transpose(1, 2) for x in wide],
    ):
        leaves = [x.detach().requires_grad_() for part in streams for x in part]
        found.append(torch.autograd.grad(fused.attention(*thirds(leaves), pe, None), leaves, along))
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@needs_compiler
@needs_avx512
def test_a_second_derivative_is_that_of_torchs_operations() -> None:
    found = []
    for attention in (fused.attention, attention_of_projections):
        leaves = [x.requires_grad_() for part in streams_of((1, 8)) for x in part]
        qkv, (scale, _), k_scales = thirds(leaves)
        made = [x * scale.repeat(3 * HEADS) for x in qkv]  # scales that are there twice, and before
        outs = attention(made, (scale, scale), k_scales, table_of(9), None)
        total, leaves = sum(out.square().sum() for out in outs), [*qkv, scale, *k_scales]
        first = torch.autograd.grad(total, leaves, create_graph=True)
        second = torch.autograd.grad(sum(one.square().sum() for one in first), leaves)
        found.append([x.detach() for x in (*first, *second)])
    for one, other in zip(*found, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, atol=1e-5 * scale, rtol=1e-4)


@pytest.fixture
def network() -> torch.nn.Module:
    """Its heads are of a size that the C++ takes."""
    return flux_at_random(tiny_params(axes_dim=(4, 6, 6)))


def given_tokens(network, **changed: Tensor) -> dict[str, Tensor]:
    return {**inputs(network.params), **changed}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Grows with every attention that the C++ computes."""
    counted, own = [], fused.attention
    monkeypatch.setattr(fused, "attention", lambda *given: (counted.append(1), own(*given))[1])
    yield counted


@needs_compiler
@needs_avx512
def test_the_network_is_the_same_either_way(
    network, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for longest in (fused.LONGEST, 0):
        monkeypatch.setattr(fused, "LONGEST", longest)
        network.zero_grad()
        out = network(**given_tokens(network))
        out.square().mean().backward()
        found.append([out.detach(), *(p.grad for p in network.parameters())])
        assert len(calls) == len(network.double_blocks) + len(network.single_blocks)
    assert_close(*found)


@needs_compiler
@needs_avx512
def test_torch_func_and_forward_mode_take_torchs_operations(network) -> None:
    given = given_tokens(network)
    img = given.pop("img")

    def velocity(x: Tensor) -> Tensor:
        return network(img=x, **given)

    along = torch.randn(img.shape, generator=torch.Generator().manual_seed(0))
    _, forward = torch.func.jvp(velocity, (img,), (along,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(img, along)
        other = torch.autograd.forward_ad.unpack_dual(velocity(dual)).tangent
    step = 1e-2
    with torch.no_grad():
        difference = (velocity(img + step * along) - velocity(img - step * along)) / (2 * step)
    torch.testing.assert_close(forward, other)
    scale = float(difference.abs().max())
    torch.testing.assert_close(forward.detach(), difference, atol=1e-2 * scale, rtol=1e-2)


@needs_compiler
@needs_avx512
def test_hooks_and_what_stands_in_a_norms_place_are_heard(network, calls: list[int]) -> None:
    (block, *_), (other, *_) = network.single_blocks, network.double_blocks
    heard = []
    block.norm.query_norm.register_forward_hook(lambda *_: heard.append(1))
    other.img_attn.norm = DoubledQueries(16)
    expected = len(network.double_blocks) + len(network.single_blocks) - 2
    network(**given_tokens(network))
    assert heard == [1]
    assert len(calls) == expected


class DoubledQueries(QKNorm):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        q, k = super().forward(q, k, v)
        return 2 * q, k


@needs_compiler
@needs_avx512
@pytest.mark.parametrize(
    "what", ["as it is", "half precision", "a size of head", "too many tokens", "positions"]
)
def test_who_is_served(what: str) -> None:
    lengths = (1024, 1) if what == "too many tokens" else (1, 16)
    size = 24 if what == "a size of head" else 32
    dtype = torch.bfloat16 if what == "half precision" else torch.float32
    streams = [[x.to(dtype) for x in part] for part in streams_of(lengths, size)]
    pe = table_of(sum(lengths), size)
    if what == "positions":
        pe = tuple(x.expand(BATCH, 1, *x.shape) for x in pe)
    assert fused.serves(*streams, HEADS, pe, None) is (what == "as it is")
    norms = [QKNorm(size) for _ in lengths]  # whoever serves, there is an answer
    given = [Stream(qkv, norm.to(dtype)) for qkv, norm in zip(streams[0], norms, strict=True)]
    outs = joint_attention(given, HEADS, pe, None)
    assert [out.shape for out in outs] == [(BATCH, length, HEADS * size) for length in lengths]


def test_without_a_compiler_torchs_operations_serve(tmp_path) -> None:
    script = (
        "import torch; from fluxsmith.model import fused_attention as fused\n"
        "from flux_at_random import flux_at_random, inputs, tiny_params\n"
        "network = flux_at_random(tiny_params(axes_dim=(4, 6, 6)))\n"
        "assert network(**inputs(network.params)).isfinite().all()\n"
        "print(fused.why_not(16))"
    )
    environment = {
        "CXX": "/no/such",
        "FLUXSMITH_CACHE": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "/no/such" in done.stdout or "AVX-512" in done.stdout
    assert not list(tmp_path.rglob("*.so"))


@needs_compiler
@needs_avx512
def test_the_operators_keep_torchs_contract() -> None:
    streams, pe = streams_of((1, 16)), table_of(17)
    mask = torch.ones(BATCH, 17, dtype=torch.bool)
    gradients = [torch.randn(BATCH, length, HEADS * 32) for length in (1, 16)]
    operators, tests = torch.ops.fluxsmith, ("test_schema", "test_faketensor")
    for given in (None, mask):
        torch.library.opcheck(operators.attention.default, (*streams, *pe, given), test_utils=tests)
        torch.library.opcheck(
            operators.attention_backward.default,
            (gradients, *streams, *pe, given),
            test_utils=tests,
        )


@needs_compiler
@needs_avx512
def test_compilers_take_it_whole() -> None:
    torch.compiler.reset()
    streams, pe = streams_of((1, 16)), table_of(17)
    norms = [QKNorm(32) for _ in streams[0]]

    def attend(*qkv: Tensor) -> tuple[Tensor, ...]:
        given = [Stream(one, norm) for one, norm in zip(qkv, norms, strict=True)]
        return joint_attention(given, HEADS, pe, None)

    found = []
    for way in (attend, torch.compile(attend, backend="aot_eager", fullgraph=True, dynamic=False)):
        leaves = [x.detach().requires_grad_() for x in streams[0]]
        outs = way(*leaves)
        sum(out.square().sum() for out in outs).backward()
        found.append([*(out.detach() for out in outs), *(x.grad for x in leaves)])
    assert all(map(torch.equal, *found))


@needs_compiler
@needs_avx512
def test_a_batch_of_gradients_is_torchs() -> None:
    leaves = [x.requires_grad_() for part in streams_of((17,)) for x in part]
    (out,) = fused.attention(*thirds(leaves), table_of(17), None)
    along = torch.randn(3, *out.shape, generator=torch.Generator().manual_seed(0))
    together = torch.autograd.grad(out, leaves, along, retain_graph=True, is_grads_batched=True)
    for i, one in enumerate(along):
        alone = torch.autograd.grad(out, leaves, one, retain_graph=True)
        for ours, torchs in zip(alone, together, strict=True):
            scale = float(ours.abs().max())
            torch.testing.assert_close(ours, torchs[i], atol=1e-5 * scale, rtol=1e-4)


@needs_compiler
@needs_avx512
def test_without_pictures_there_is_nothing_to_do() -> None:
    (qkv,), *scales = streams_of((17,))
    leaves = [qkv[:0].requires_grad_(), *(x.requires_grad_() for part in scales for x in part)]
    (out,) = fused.attention(*thirds(leaves), table_of(17), None)
    assert out.shape == (0, 17, HEADS * 32)
    assert all(not grad.any() for grad in torch.autograd.grad(out, leaves, torch.zeros_like(out)))


@needs_compiler
@needs_avx512
def test_a_picture_that_may_look_at_nothing_gets_nothing() -> None:
    streams, pe = streams_of((17,)), table_of(17)
    mask = torch.ones(BATCH, 17, dtype=torch.bool)
    mask[1] = False
    (out,) = fused.attention(*streams, pe, mask)
    assert not out[1].any()
    assert torch.equal(out[0], fused.attention(*streams, pe, None)[0][0])


@needs_compiler
@needs_avx512
@pytest.mark.parametrize(
    "what", ["table", "batch", "width", "scale", "mask", "numbers as mask", "half precision"]
)
def test_what_does_not_fit_never_reaches_the_pointers(what: str) -> None:
    qkv, q_scales, k_scales = streams_of((1, 16))
    pe, mask = table_of(17), torch.ones(BATCH, 17, dtype=torch.bool)
    if what == "table":
        pe = table_of(14)
    elif what == "batch":
        qkv[1] = qkv[1][:1]
    elif what == "width":
        qkv[1] = qkv[1][..., :96]
    elif what == "scale":
        k_scales[1] = k_scales[1][:16]
    elif what == "half precision":
        qkv, q_scales, k_scales = ([x.bfloat16() for x in y] for y in (qkv, q_scales, k_scales))
    else:
        mask = mask[:1] if what == "mask" else mask.long()
    assert not fused.serves(qkv, q_scales, k_scales, HEADS, pe, mask)
    with pytest.raises(ValueError, match="not those of one attention"):
        fused.attention(qkv, q_scales, k_scales, pe, mask)


def test_the_network_imports_without_torchs_compiler() -> None:
    script = "import sys, fluxsmith.model.flux; print('torch._dynamo' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@needs_compiler
@needs_avx512
def test_an_exported_program_has_torchs_operations_alone(network, calls: list[int]) -> None:
    if not hasattr(torch.compiler, "is_exporting"):
        pytest.skip("this torch can't tell")
    exported = torch.export.export(network, (), given_tokens(network), strict=False)
    assert not calls
    assert "fluxsmith" not in str(exported.graph)
