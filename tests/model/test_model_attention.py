"""Attention over few tokens and over many, which a CPU computes in two ways."""

import pytest
import torch

from fluxsmith.model.attention import SHORT, attention


@pytest.mark.parametrize("length", [1, SHORT, SHORT + 1])
def test_attention_is_softmax_attention_at_every_length(length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, generator=generator) for _ in range(3))
    unturned = torch.ones(length, 4), torch.zeros(length, 4)
    weights = (torch.einsum("bhik,bhjk->bhij", q, k) / 8**0.5).softmax(dim=-1)
    expected = torch.einsum("bhij,bhjk->bihk", weights, v).flatten(2)
    torch.testing.assert_close(attention(q, k, v, unturned, None), expected, atol=1e-5, rtol=1e-5)
