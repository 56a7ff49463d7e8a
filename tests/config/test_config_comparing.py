"""Two configs fit together where nothing differs that a model or its course depends on."""

import pytest

from fluxsmith.config.comparing import COURSE, MODEL, check_same
from fluxsmith.errors import UserError


def difference(before, now, keys=MODEL) -> str:
    with pytest.raises(UserError) as caught:
        check_same(before, now, keys, "old.pt")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("keys", [MODEL, COURSE], ids=["model", "course"])
def test_equal_configs_are_not_refused(read, keys):
    check_same(read(), read(), keys, "old.pt")


@pytest.mark.parametrize(
    ("override", "before", "now"),
    [
        ("model.depth=5", "model.depth=6", "model.depth=5"),
        ("data.image_size=16", "data.image_size=32", "data.image_size=16"),
        ("model.axes_dim=[8, 28, 28]", "model.axes_dim=[16, 24, 24]", "model.axes_dim=[8, 28, 28]"),
    ],
)
def test_a_difference_is_named_with_both_values_and_its_origin(read, override, before, now):
    message = difference(read(), read(override))
    assert [part for part in (before, now, "old.pt") if part not in message] == []


def test_the_first_of_several_differences_is_named(read):
    message = difference(read(), read("model.depth=5", "data.image_size=16", "text.width=64"))
    assert "data.image_size=16" in message
    assert "model.depth" not in message


@pytest.mark.parametrize(
    "override",
    ["data.path=elsewhere", "name=other", "output_dir=other", "train.steps=5", "sample.steps=5"],
)
def test_what_a_model_does_not_depend_on_may_differ(read, override):
    text = "data: {source: mnist}\n"
    check_same(read(text=text), read(override, text=text), COURSE, "old.pt")


@pytest.mark.parametrize("override", ["seed=1", "train.batch_size=32", "flow.timesteps=uniform"])
def test_a_course_depends_on_more_than_its_model(read, override):
    check_same(read(), read(override), MODEL, "old.pt")
    assert override in difference(read(), read(override), COURSE)


def test_a_section_does_not_cover_keys_that_only_begin_like_it(read):
    check_same(read(), read("train.batch_size=32"), ("train.batch",), "old.pt")
