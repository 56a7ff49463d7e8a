"""Each source takes the settings that it has a use for, and refuses the others by name."""

import pytest

from fluxsmith.config.reading import build_config
from fluxsmith.config.sections import KEYS_OF, SOURCE_KEYS
from fluxsmith.data import SOURCES
from fluxsmith.errors import UserError

VALUES = {
    "image_key": "img", "caption_key": "words", "templates": ["a {}"], "subset": "en",
    "train_split": "train", "test_split": "test", "test_path": "x.tar", "test_share": 0.1,
    "streaming": False, "base": "mnist", "hold_out": [["red", 7]], "in_memory": "auto",
    "workers": 3, "shuffle_buffer": 10, "max_bad": 0.5,
}  # fmt: skip


def built(source, **data):
    return build_config({"data": {"source": source, **data}}, "test").data


def refused(source, **data) -> str:
    with pytest.raises(UserError) as caught:
        built(source, **data)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_every_key_of_a_source_has_a_value_here():
    assert set(VALUES) == set(SOURCE_KEYS)
    assert set(KEYS_OF) == set(SOURCES)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("key", VALUES)
def test_a_source_takes_its_keys_and_no_other(source, key):
    streamed = {"streaming": True} if source == "hf" and key == "shuffle_buffer" else {}
    if key in KEYS_OF[source]:
        settings = built(source, **{key: VALUES[key], **streamed}).settings()
        given = {**vars(settings), **settings.options}
        assert given[key] == VALUES[key]
    else:
        message = refused(source, **{key: VALUES[key]})
        assert f"data.{key}=" in message
        assert f"data.source={source}" in message


def test_settings_that_contradict_each_other_are_named():
    assert "is for streams" in refused("hf", shuffle_buffer=5)
    assert "never in memory" in refused("hf", streaming=True, in_memory=True)
    assert "cuts anew each epoch" in refused("folder", in_memory=True, resize="random-crop")
    assert "takes one key" in refused("folder", caption_key=["a", "b"])


def test_the_common_settings_go_along():
    data = built("mnist", path="here", image_size=64, channels=3, resize="stretch", flip=True)
    settings = data.settings()
    assert (settings.source, settings.path, settings.image_size) == ("mnist", "here", 64)
    assert (settings.channels, settings.resize, settings.flip) == (3, "stretch", True)
    assert settings.caption_dropout == data.caption_dropout
    assert settings.options == {}
