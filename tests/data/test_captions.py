"""A caption is drawn by its address (seed, epoch, image), at the frequencies that are promised."""

import math

import pytest
import torch
from helpers import data_settings

from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.loader import MemoryLoader, Place

N = 20_000


def within_five_deviations(count: int, n: int, p: float) -> bool:
    return abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p))


def drawn(ways, *, dropout: float, seed: int = 0, epoch: int = 0, n: int = N) -> list[str]:
    """The caption that each of n images gets in an epoch."""
    data = ImageSet(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.zeros(n).long(), [ways])
    settings = data_settings("digits", caption_dropout=dropout)
    loader = MemoryLoader([data], n, seed, settings)
    return [loader.caption(Place(epoch, 0, image), ways) for image in range(n)]


@pytest.mark.parametrize("dropout", [0.1, 0.5])
@pytest.mark.parametrize("ways", [("3", "three"), ("a", "b", "c")])
def test_captions_are_equally_likely_and_dropped_at_the_given_rate(dropout, ways):
    captions = drawn(ways, dropout=dropout)
    assert within_five_deviations(captions.count(""), N, dropout)
    for way in ways:
        assert within_five_deviations(captions.count(way), N, (1 - dropout) / len(ways))


def test_the_dropout_has_no_say_in_which_caption_is_drawn():
    kept, dropped = drawn("ab", dropout=0.0), drawn("ab", dropout=0.3)
    assert all(then in ("", now) for now, then in zip(kept, dropped, strict=True))
    assert "" not in kept
    assert set(drawn("ab", dropout=1.0)) == {""}


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
def test_another_epoch_or_seed_draws_anew(other):
    pairs = zip(drawn("ab", dropout=0.0), drawn("ab", dropout=0.0, **other), strict=True)
    assert within_five_deviations(sum(a == b for a, b in pairs), N, 0.5)
