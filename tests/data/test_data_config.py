"""Each source takes the settings that it has a use for, and refuses the others by name."""

import pytest
from helpers import data_settings

from fluxsmith.config.data_section import DataConfig
from fluxsmith.config.kinds import section_of
from fluxsmith.config.reading import build_config
from fluxsmith.data import SOURCES
from fluxsmith.errors import UserError

VALUES = {
    "path": "here", "image_key": "img", "caption_key": "words", "templates": ["a {}"],
    "subset": "en", "train_split": "train", "test_split": "test", "test_path": "x.tar",
    "test_share": 0.1, "streaming": True, "base": "mnist", "hold_out": [["red", "7"]],
    "in_memory": "auto", "workers": 3, "shuffle_buffer": 10, "max_bad": 0.5, "caption": "a cat",
    "captions": "name", "class_names": ["a", "b"], "whole_text": True, "shuffle_tags": 1,
    "variants": 2, "edits": True, "reference_key": "before",
}  # fmt: skip
NEEDS = {
    ("hf", "shuffle_buffer"): {"streaming": True},
    ("colored-digits", "path"): {"base": "mnist"},
}


def refused(source, **data) -> str:
    with pytest.raises(UserError) as caught:
        build_config({"data": {"source": source, **data}}, "test")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def keys(source) -> set[str]:
    return set(section_of(DataConfig, source).model_fields) - set(DataConfig.model_fields)


def test_every_key_of_a_source_has_a_value_here():
    assert set().union(*map(keys, SOURCES)) == set(VALUES)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("key", VALUES)
def test_a_source_takes_its_keys_and_no_other(source, key):
    if key in keys(source):
        more = NEEDS.get((source, key), {})
        assert getattr(data_settings(source, **more, **{key: VALUES[key]}), key) == VALUES[key]
    else:
        message = refused(source, **{key: VALUES[key]})
        assert f"data.{key}=" in message
        assert f"data.source={source} has no {key}" in message


def test_settings_that_contradict_each_other_are_named():
    assert "is for streams" in refused("hf", shuffle_buffer=5)
    assert "never in memory" in refused("hf", streaming=True, in_memory=True)
    assert "cuts anew each epoch" in refused("folder", in_memory=True, resize="random-crop")
    assert "is the caption of all images" in refused("folder", caption="x", captions="class")
    assert "is the caption of all images" in refused("webdataset", caption="x", caption_key="y")
    assert "data.templates=" in refused("folder", captions="none", templates=["a {}"])
    assert "needs no files" in refused("colored-digits", path="here")
