"""The byte encoder: any text, told apart from any other, the same in whatever batch it comes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxsmith.errors import UserError
from fluxsmith.text.byte_encoder import CONTINUED, ByteEncoder, pieces

LIMIT = 40
ATOL = 1e-5

PROMPTS = ["3", "", "a much longer prompt here", "three", "零から九まで のすうじ", "red on blue"]


def encoder():
    torch.manual_seed(0)
    return ByteEncoder(width=24, hidden_size=64, depth=2, max_tokens=LIMIT)


@pytest.fixture(scope="module")
def encode():
    return encoder()


def pieces_needed(prompt):
    lengths = [len(word.encode()) for word in prompt.split()]
    return sum(1 + math.ceil(max(0, n - 16) / 15) for n in lengths) or 1


@settings(deadline=None, max_examples=40)
@given(prompt=st.text(max_size=LIMIT))
def test_any_text_is_encoded_in_a_token_a_word(encode, prompt):
    with torch.no_grad():
        embedding = encode([prompt])
    assert embedding.tokens.shape == (1, pieces_needed(prompt), 24)
    assert embedding.pooled.shape == (1, 24)
    assert embedding.mask is None
    assert embedding.tokens.isfinite().all()
    assert embedding.pooled.isfinite().all()


@settings(deadline=None)
@given(prompt=st.text())
def test_pieces_hold_every_byte_in_order(prompt):
    cut = pieces(prompt)
    bare = [piece.removeprefix(CONTINUED) for piece in cut]
    assert b"".join(bare) == "".join(prompt.split()).encode()
    assert len(cut) == pieces_needed(prompt)
    assert max(map(len, cut)) <= 16


def test_pieces_by_example():
    assert pieces("") == pieces("  \n") == (b"",)
    assert pieces("a  red dog") == (b"a", b"red", b"dog")
    assert pieces("x" * 16) == (b"x" * 16,)
    assert pieces("no " + "x" * 33) == (
        b"no", b"x" * 16, CONTINUED + b"x" * 15, CONTINUED + b"xx",
    )  # fmt: skip
    assert pieces("é") == (b"\xc3\xa9",)
    assert pieces("internationalisation") != pieces("internationalisa tion")


@torch.no_grad()
@pytest.mark.parametrize(
    ("prompts", "mask"),
    [
        (["3"], None),
        (["", "3"], None),
        (["a dog", "a cat", "a dog"], None),
        (["a dog", "cat"], [[1, 1], [1, 0]]),
        (["", "the red dog", "cat", "a dog"], [[1, 0, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]]),
    ],
    ids=str,
)
def test_there_is_a_mask_exactly_where_there_is_padding(encode, prompts, mask):
    got = encode(prompts).mask
    assert (None if got is None else got.int().tolist()) == mask
    assert got is None or got.dtype == torch.bool


@torch.no_grad()
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3", "8"),
        ("three", "Three"),
        ("red on blue", "blue on red"),
        ("dog dog cat", "dog cat cat"),
        ("dog", "god"),
        ("", "a"),
        ("a", "a a"),
        ("a", "a\x00"),
        ("abc", "ab c"),
        ("e", "é"),
        ("é", "e\u0301"),
        ("x" * 40, "x" * 41),
        ("x" * 17 + "a", "x" * 17 + "b"),
    ],
)
def test_different_prompts_have_different_embeddings(encode, one, other):
    a, b = encode([one]), encode([other])
    assert (a.pooled - b.pooled).abs().max() > 1e-3
    assert a.tokens.shape != b.tokens.shape or (a.tokens - b.tokens).abs().max() > 1e-3


@pytest.mark.parametrize("training", [True, False], ids=["training", "sampling"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_the_same_in_any_batch(prompt, training):
    trained, encode = encoder(), encoder().train(training)
    with torch.set_grad_enabled(training):  # PyTorch computes in another way without gradients
        alone, batch = trained([prompt]), encode([*PROMPTS, prompt])
        n = alone.tokens.shape[1]
        for row in (PROMPTS.index(prompt), len(PROMPTS)):
            torch.testing.assert_close(batch.pooled[row], alone.pooled[0], rtol=0, atol=ATOL)
            real = batch.tokens[row, :n]
            torch.testing.assert_close(real, alone.tokens[0], rtol=0, atol=ATOL)
            assert batch.mask[row].sum() == n


def test_a_repeated_prompt_learns_from_each_of_its_rows():
    weights = torch.randn(3, 24, generator=torch.Generator().manual_seed(1))

    def gradient(prompts, weights):
        encode = encoder()
        (encode(prompts).pooled * weights).sum().backward()
        return encode.bytes_in.weight.grad

    together = gradient(["7", "7", "8"], weights)
    apart = sum(gradient([p], w) for p, w in zip(["7", "7", "8"], weights, strict=True))
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)
    assert together.any()


def test_every_layer_learns():
    encode = encoder()
    embedding = encode(PROMPTS)
    (embedding.tokens.square().sum() + embedding.pooled.square().sum()).backward()
    assert [name for name, p in encode.named_parameters() if not p.grad.any()] == []


def test_a_prompt_too_long_is_refused_with_the_limit(encode):
    encode(["word " * LIMIT])
    with pytest.raises(UserError, match=r"prompt 2 \('word .*makes 41 tokens.* takes 40"):
        encode(["fine", "word " * (LIMIT + 1)])
    with pytest.raises(UserError, match="makes 41 tokens"):
        encode.check(["x" * (16 + 15 * (LIMIT - 1) + 1)])


def test_half_a_surrogate_pair_is_refused_with_its_place(encode):
    with pytest.raises(UserError, match=r"prompt 2 is not valid text.* at character 9\b"):
        encode(["fine", "not fine \ud83d"])
