"""TextEmbedding: rows out of a batch, one row for a batch, and the distinct prompts of a batch."""

import pytest
import torch

from fluxsmith.text.encoder import TextEmbedding, distinct


def embedding(batch, masked):
    tokens = torch.arange(batch * 3 * 2.0).view(batch, 3, 2)
    mask = torch.arange(3) <= torch.arange(batch)[:, None] if masked else None
    return TextEmbedding(tokens, torch.arange(batch * 4.0).view(batch, 4), mask)


def equal(a, b):
    masks = a.mask is b.mask or torch.equal(a.mask, b.mask)
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.pooled, b.pooled) and masks


every_mask = pytest.mark.parametrize("masked", [False, True], ids=["full", "padded"])


@every_mask
@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([3, 0, 0, 2]), slice(0, 0)], ids=str)
def test_rows_are_taken_from_every_part(rows, masked):
    whole = embedding(4, masked)
    mask = whole.mask[rows] if masked else None
    assert equal(whole[rows], TextEmbedding(whole.tokens[rows], whole.pooled[rows], mask))
    assert len(whole[rows]) == len(range(4)[rows] if isinstance(rows, slice) else rows)


@every_mask
def test_expanding_repeats_without_copying(masked):
    one = embedding(1, masked)
    five = one.expand(5)
    assert len(five) == 5
    assert equal(five, one[torch.zeros(5, dtype=torch.long)])
    assert five.tokens.data_ptr() == one.tokens.data_ptr()
    assert five.pooled.data_ptr() == one.pooled.data_ptr()


@pytest.mark.parametrize("masked", [(False, False), (False, True), (True, False), (True, True)])
def test_two_batches_of_equal_length_follow_each_other(masked):
    one, two = embedding(4, masked[0]), embedding(2, masked[1])
    both = one.followed_by(two)
    assert torch.equal(both.tokens, torch.cat((one.tokens, two.tokens)))
    assert torch.equal(both.pooled, torch.cat((one.pooled, two.pooled)))
    assert (both.mask is None) == (not any(masked))
    assert torch.equal(both.real, torch.cat((one.real, two.real)))


@every_mask
@pytest.mark.parametrize("longer_first", [False, True])
def test_the_shorter_of_two_batches_is_padded_and_masked(masked, longer_first):
    longer, short = embedding(3, masked), embedding(3, masked)
    short = TextEmbedding(short.tokens[:, :1], short.pooled, short.mask[:, :1] if masked else None)
    both = longer.followed_by(short) if longer_first else short.followed_by(longer)
    from_longer, from_short = (slice(0, 3), slice(3, 6))[:: 1 if longer_first else -1]
    assert equal(both[from_longer], TextEmbedding(longer.tokens, longer.pooled, longer.real))
    padded = both[from_short]
    assert torch.equal(padded.tokens[:, :1], short.tokens)
    assert padded.mask.tolist() == [[True, False, False]] * 3
    assert torch.equal(padded.pooled, short.pooled)


def test_distinct_prompts_and_where_each_stands():
    strings, rows = distinct(["b", "a", "b", "", "a", "A"])
    assert strings == ["b", "a", "", "A"]
    assert rows.tolist() == [0, 1, 0, 2, 1, 3]


def test_padding_never_cuts_tokens():
    embedding = TextEmbedding(torch.ones(2, 3, 4), torch.ones(2, 5))
    with pytest.raises(ValueError, match="3 tokens can't be padded to 2"):
        embedding.padded(2)
