"""The small world of coloured digits: what is said is what is shown, and what is held out is."""

from functools import partial

import pytest
import torch
from helpers import open_data

from fluxsmith.data.captions import WORDS
from fluxsmith.data.colored_digits import COLORS, PALETTE, captions, paint
from fluxsmith.errors import UserError

open_digits, load_digits = partial(open_data, "colored-digits"), partial(open_data, "digits")

HELD_OUT = [["red", 7], ["blue", "three"]]


@pytest.fixture(scope="module")
def world():
    return open_digits(None, "train")


def triple(caption: str) -> tuple[int, str, str]:
    """Digit, ink and paper as a reader of the caption understands them."""
    words = caption.replace(",", "").split()
    colors = [word for word in words if word in PALETTE]
    ink, paper = reversed(colors) if caption.startswith("on ") else colors
    (digit,) = [word for word in words if word in WORDS or word.isdecimal()]
    return int(digit) if digit.isdecimal() else WORDS.index(digit), ink, paper


def test_every_caption_says_the_digit_and_both_colours(world):
    for label, ways in enumerate(world.captions):
        meant = {triple(caption) for caption in ways}
        assert len(ways) == len(set(ways)) == 4
        (found,) = meant
        assert found[0] == int(world.classes.of_label[label])
        assert found[1] != found[2]
    assert captions(7, COLORS.index("red"), COLORS.index("blue"))[0] == "a red seven on blue"


def test_the_corners_show_the_paper_and_the_brightest_stroke_the_ink(world):
    grey = torch.nn.functional.pad(load_digits(None, "train").images, (1,) * 4).repeat(8, 1, 1, 1)
    full = (grey == 255).flatten(1).any(1).nonzero()[:, 0].tolist()  # a few are drawn faintly
    assert len(full) > 10_000
    for i in full[::501]:
        _, ink, paper = triple(world.captions[int(world.labels[i])][0])
        assert tuple(world.images[i, :, 0, 0].tolist()) == PALETTE[paper]
        stroke = (grey[i, 0] == 255).nonzero()[0]
        assert tuple(world.images[i, :, stroke[0], stroke[1]].tolist()) == PALETTE[ink]


def test_painting_white_on_black_changes_nothing():
    grey = load_digits(None, "test").images[:5]
    white, black = (torch.full((5,), COLORS.index(name)) for name in ("white", "black"))
    assert torch.equal(paint(grey, white, black), grey.repeat(1, 3, 1, 1))
    assert torch.equal(paint(grey, black, white), 255 - grey.repeat(1, 3, 1, 1))


def test_all_triples_occur_and_the_world_is_the_same_every_time(world):
    assert len(world) == 8 * 1415
    assert len(world.captions) == 10 * 8 * 7
    assert world.labels.unique().tolist() == list(range(560))
    again = open_digits(None, "train")
    assert torch.equal(again.images, world.images)
    assert torch.equal(again.labels, world.labels)


def test_held_out_pairs_are_never_trained_on_and_are_in_the_test_images():
    train = open_digits(None, "train", hold_out=HELD_OUT)
    pairs = {triple(ways[0])[:2] for ways in train.captions}
    assert len(pairs) == 80 - 2
    assert not pairs & {(7, "red"), (3, "blue")}
    test = open_digits(None, "test", hold_out=HELD_OUT)
    assert {(7, "red"), (3, "blue")} <= {triple(ways[0])[:2] for ways in test.captions}


@pytest.mark.parametrize("pair", [["red"], ["red", 10], ["orange", 7], ["red", "sieben"]])
def test_a_pair_that_is_none_is_named(pair):
    with pytest.raises(UserError, match=r"data\.hold_out.*such as \[red, 7\]"):
        open_digits(None, "train", hold_out=[["red", 7], pair])
