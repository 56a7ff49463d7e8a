"""Attention in one pass of C++: the same numbers as torch's operations, forward and backward."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fluxsmith.kernels.cpu import fused_attention as fused
from fluxsmith.model.rope import RotaryTable, rotary_table

pytestmark = pytest.mark.usefixtures("vectors")
HEADS, BATCH = 3, 2
LENGTHS = [(1,), (16,), (17,), (5, 30), (0, 4), (40, 2, 23)]
Streams = tuple[list[Tensor], list[Tensor], list[Tensor]]  # projections, scales, scales


def streams_of(lengths: Sequence[int], size: int = 32) -> Streams:
    draw = torch.Generator().manual_seed(0)
    qkv = [torch.randn(BATCH, length, 3 * HEADS * size, generator=draw) for length in lengths]
    scales = [1 + 0.3 * torch.randn(size, generator=draw) for _ in range(2 * len(qkv))]
    return qkv, scales[: len(qkv)], scales[len(qkv) :]


def table_of(length: int, size: int = 32) -> RotaryTable:
    ids = torch.randint(0, 7, (length, 3), generator=torch.Generator().manual_seed(1)).float()
    return rotary_table(ids, (size - 8, 4, 4), 10_000)


def thirds(tensors: Sequence[Tensor]) -> Sequence[Sequence[Tensor]]:
    n = len(tensors) // 3
    return tensors[:n], tensors[n : 2 * n], tensors[2 * n :]


def in_double(
    qkv: Sequence[Tensor],
    q_scales: Sequence[Tensor],
    k_scales: Sequence[Tensor],
    pe: RotaryTable,
    mask: Tensor | None,
) -> tuple[Tensor, ...]:
    """Attention as it is written in papers, in float64."""
    size, (cos, sin) = len(q_scales[0]), (x.double() for x in pe)
    q, k, v = [], [], []
    for x, *scales in zip(qkv, q_scales, k_scales, strict=True):
        parts = x.double().view(*x.shape[:2], 3, HEADS, size).unbind(2)
        for into, part, scale in zip((q, k), parts[:2], scales, strict=True):
            rms = (part.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            into.append(part / rms * scale.double())
        v.append(parts[2])
    turn = torch.complex(cos, sin)[:, None]  # (l, 1, k/2)
    q, k, v = (torch.cat(part, dim=1) for part in (q, k, v))  # (b, l, h, k)
    q, k = (
        torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)
        for x in (q, k)
    )
    logits = torch.einsum("bihk,bjhk->bhij", q, k) / size**0.5
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
    out = torch.einsum("bhij,bjhk->bihk", logits.softmax(-1), v).flatten(2)
    return out.split([x.shape[1] for x in qkv], dim=1)


def with_gradients(
    attention: Callable[..., tuple[Tensor, ...]],
    streams: Streams,
    pe: RotaryTable,
    mask: Tensor | None = None,
) -> list[Tensor]:
    """The output of every stream, and the gradients of everything in the streams."""
    leaves = [x.detach().requires_grad_() for part in streams for x in part]
    outs = attention(*thirds(leaves), pe, mask)
    draw = torch.Generator().manual_seed(2)
    along = [torch.randn(out.shape, generator=draw).to(out.dtype) for out in outs]
    return [*outs, *torch.autograd.grad(outs, leaves, along)]


def assert_close(ours: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    for one, other in zip(ours, exact, strict=True):
        scale = max([1e-3, *other.detach().abs().flatten().tolist()])
        torch.testing.assert_close(one.double(), other.double(), atol=2e-6 * scale, rtol=1e-5)


@pytest.mark.parametrize("size", [16, 48, 128])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_those_of_exact_arithmetic(
    size: int, lengths: tuple[int, ...], masked: bool
) -> None:
    assert fused.serves(size)
    streams, pe = streams_of(lengths, size), table_of(sum(lengths), size)
    mask = None
    if masked:
        mask = torch.rand(BATCH, sum(lengths), generator=torch.Generator().manual_seed(3)) < 0.7
        mask[:, -1] = True
    exact = with_gradients(in_double, streams, pe, mask)
    assert_close(with_gradients(fused.attention, streams, pe, mask), exact)


def test_a_masked_token_changes_nothing_and_one_that_may_see_nothing_gets_nothing() -> None:
    streams, pe = streams_of((3, 16)), table_of(19)
    mask = torch.ones(BATCH, 19, dtype=torch.bool)
    mask[0, 1] = False
    mask[1] = False
    before = fused.attention(*streams, pe, mask)
    streams[0][0][0, 1] *= 1e3
    after = fused.attention(*streams, pe, mask)
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[0][:, [0, 2]], after[0][:, [0, 2]])
    assert not any(out[1].any() for out in after)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", [0, 1, 2])  # queries, keys, values
def test_what_is_not_finite_stays_so(number: float, part: int) -> None:
    streams, pe = streams_of((17,)), table_of(17)
    streams[0][0][0, 5, part * HEADS * 32] = number
    (out,), reached = fused.attention(*streams, pe, None), slice(5, 6) if part == 0 else slice(None)
    assert not out[0, reached, :32].isfinite().all(dim=-1).any()
    assert out[1].isfinite().all()


@pytest.mark.usefixtures("threads")
def test_any_number_of_threads_gives_the_same_bits() -> None:
    streams, pe, found = streams_of((1, 16)), table_of(17), []
    for n in (1, 2, 5):
        torch.set_num_threads(n)
        found.append(with_gradients(fused.attention, streams, pe))
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@pytest.mark.parametrize("lengths", [(17,), (1, 16)])
def test_gradients_may_be_cut_from_wider_ones(lengths: tuple[int, ...]) -> None:
    streams, pe = streams_of(lengths), table_of(sum(lengths))
    wide = [torch.randn(BATCH, length, HEADS * 32 + 8) for length in lengths]
    cut = [x[..., : HEADS * 32] for x in wide]
    found = []
    for along in (
        cut,
        [x.contiguous() for x in cut],
        [x.transpose(0, 1).contiguous().transpose(0, 1) for x in cut],
        [x.transpose(1, 2).contiguous().transpose(1, 2) for x in cut],
    ):
        leaves = [x.detach().requires_grad_() for part in streams for x in part]
        found.append(torch.autograd.grad(fused.attention(*thirds(leaves), pe, None), leaves, along))
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


def test_second_derivatives_are_those_of_torchs_operations() -> None:
    found = []
    for attention in (fused.attention, in_double):
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


def test_what_does_not_fit_never_reaches_the_pointers() -> None:
    qkv, q_scales, k_scales = streams_of((1, 16))
    pe, mask = table_of(17), torch.ones(BATCH, 17, dtype=torch.bool)
    given = {"qkv": qkv, "q_scales": q_scales, "k_scales": k_scales, "pe": pe, "mask": mask}
    assert fused.fit(**given)
    for other in (
        {"pe": table_of(14)},
        {"pe": [x.expand(BATCH, 1, *x.shape) for x in pe]},
        {"pe": [x.clone().requires_grad_() for x in pe]},
        {"qkv": [qkv[0], qkv[1][:1]]},
        {"qkv": [qkv[0], qkv[1][..., :96]]},
        {"qkv": [x.bfloat16() for x in qkv]},
        {"k_scales": [k_scales[0], k_scales[1][:16]]},
        {"mask": mask[:1]},
        {"mask": mask.long()},
    ):
        assert not fused.fit(**{**given, **other})


def test_a_batch_of_gradients_is_its_gradients() -> None:
    leaves = [x.requires_grad_() for part in streams_of((17,)) for x in part]
    (out,) = fused.attention(*thirds(leaves), table_of(17), None)
    along = torch.randn(3, *out.shape, generator=torch.Generator().manual_seed(0))
    together = torch.autograd.grad(out, leaves, along, retain_graph=True, is_grads_batched=True)
    alone = [torch.autograd.grad(out, leaves, one, retain_graph=True) for one in along]
    for batched, *ours in zip(together, *alone, strict=True):
        scale = float(batched.abs().max())
        torch.testing.assert_close(torch.stack(ours), batched, atol=1e-5 * scale, rtol=1e-4)


def test_sizes_of_heads_that_fit_no_vector_are_not_served(vectors: str) -> None:
    assert not fused.serves(20)
    assert not fused.serves(256)
    assert fused.serves(24) is (vectors == "avx2")


def test_the_operators_keep_torchs_contract() -> None:
    streams, pe = streams_of((1, 16)), table_of(17)
    gradients = [torch.randn(BATCH, length, HEADS * 32) for length in (1, 16)]
    operators, tests = torch.ops.fluxsmith, ("test_schema", "test_faketensor")
    for mask in (None, torch.ones(BATCH, 17, dtype=torch.bool)):
        given = (*streams, *pe, mask)
        torch.library.opcheck(operators.attention.default, given, test_utils=tests)
        backward = operators.attention_backward.default
        torch.library.opcheck(backward, (gradients, *given), test_utils=tests)
