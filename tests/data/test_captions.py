"""A caption is drawn by its address (seed, epoch, image), at the frequencies that are promised."""

import math

import pytest

from fluxsmith.data.captions import DIGIT_CAPTIONS, CaptionDraw

N = 20_000


def within_five_deviations(count: int, n: int, p: float) -> bool:
    return abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p))


def drawn(ways, *, dropout: float, seed: int = 0, epoch: int = 0, n: int = N) -> list[str]:
    draw = CaptionDraw(n, seed, epoch, dropout)
    return [draw(image, ways) for image in range(n)]


def test_digits_are_named_as_numeral_and_word():
    assert DIGIT_CAPTIONS[0] == ("0", "zero")
    assert DIGIT_CAPTIONS[7] == ("7", "seven")
    assert len(DIGIT_CAPTIONS) == 10


@pytest.mark.parametrize("dropout", [0.1, 0.5])
@pytest.mark.parametrize("ways", [("3", "three"), ("a", "b", "c")])
def test_captions_are_equally_likely_and_dropped_at_the_given_rate(dropout, ways):
    captions = drawn(ways, dropout=dropout)
    assert within_five_deviations(captions.count(""), N, dropout)
    for way in ways:
        assert within_five_deviations(captions.count(way), N, (1 - dropout) / len(ways))


def test_which_caption_is_drawn_does_not_depend_on_the_dropout():
    kept, dropped = drawn("ab", dropout=0.0), drawn("ab", dropout=0.3)
    assert all(then in ("", now) for now, then in zip(kept, dropped, strict=True))


def test_no_dropout_drops_nothing_and_full_dropout_all():
    assert "" not in drawn(("3", "three"), dropout=0.0)
    assert set(drawn(("3", "three"), dropout=1.0)) == {""}


def test_an_address_gives_one_caption_in_any_order_of_asking():
    forwards, backwards = CaptionDraw(50, 3, 2, 0.2), CaptionDraw(50, 3, 2, 0.2)
    asked = {image: backwards(image, "ab") for image in reversed(range(50))}
    assert [forwards(image, "ab") for image in range(50)] == [asked[i] for i in range(50)]


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
def test_another_epoch_or_seed_draws_anew(other):
    pairs = zip(drawn("ab", dropout=0.0), drawn("ab", dropout=0.0, **other), strict=True)
    assert within_five_deviations(sum(a == b for a, b in pairs), N, 0.5)
