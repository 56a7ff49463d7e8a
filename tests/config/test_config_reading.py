"""A config is what its file and its overrides say, and every broken file is told in one line."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxsmith.config import RunConfig, read_config
from fluxsmith.config.reading import all_keys, build_config
from fluxsmith.errors import UserError

TINY = Path(__file__).parents[2] / "configs/image/digits/tiny.yaml"

# Where YAML's own readers of numbers, dates and tags raise something other than a YAMLError.
TREACHEROUS = ["2024-13-45", "0b_", "!!int x", "!!bool x", "!!timestamp x", "1" * 5000, "[" * 2000]


def test_what_is_not_given_is_the_default(read):
    assert read() == read(text="data:\n  source: digits\n  image_size: 32\ntrain: {steps: 1000}\n")


@pytest.mark.parametrize(
    ("text", "number"),
    [("2e-4", 2e-4), ("1e-3", 1e-3), ("+1E-3", 1e-3), (".5e-2", 5e-3), ("3.e-1", 0.3), ("1", 1)],
)
def test_numbers_with_exponents_are_numbers(read, text, number):
    assert read(f"train.learning_rate={text}").train.learning_rate == number
    from_file = read(text=f"data: {{source: digits}}\ntrain:\n  learning_rate: {text}\n")
    assert from_file.train.learning_rate == number


def test_a_whole_number_may_be_written_with_an_exponent(read):
    steps = read("train.steps=1e4").train.steps
    assert steps == 10_000
    assert isinstance(steps, int)


def test_prompts_are_composed_as_they_are_drawn(read):
    assert read('sample.prompts=["cafe\u0301"]').sample.prompts == ["caf\u00e9"]


def test_overrides_reach_into_sections_and_the_last_one_holds(read):
    config = read("train.steps=7", "seed=3", "train.steps=8", "train.batch_size=2")
    assert (config.seed, config.train.steps, config.train.batch_size) == (3, 8, 2)


def test_an_override_replaces_what_the_file_says_by_any_yaml_after_its_first_equals_sign(read):
    text = "data: {source: digits}\ntrain: {steps: 5, batch_size: 2}\n"
    config = read("train.steps=7", text=text)
    assert (config.train.steps, config.train.batch_size) == (7, 2)
    assert read("model.axes_dim=[8, 28, 28]").model.axes_dim == [8, 28, 28]
    assert read("train={steps: 3}").train.steps == 3
    assert read("name=a=b").name == "a=b"


@pytest.mark.parametrize("override", ["train.steps", "=3", "", " =3"])
def test_an_override_that_is_not_key_value(mistake, override):
    assert repr(override) in mistake(override)


def test_an_override_with_broken_yaml_names_itself(mistake):
    assert "train.betas=[0.9," in mistake("train.betas=[0.9,")


def test_an_override_below_what_is_no_section(read, mistake):
    read("data.source=digits", text="data:\n")
    for section in ("3", "[a]"):
        message = mistake("data.source=digits", text=f"data: {section}\n")
        assert "must be a section of keys" in message


def test_a_key_given_twice_is_refused(mistake):
    message = mistake(text="seed: 1\ndata: {source: digits}\nseed: 2\n")
    assert "'seed' is given twice in line 3" in message
    message = mistake(text="data:\n  source: digits\n  flip: true\n  flip: false\n")
    assert "'flip' is given twice in line 4" in message


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system"]
)
def test_a_tag_that_would_build_an_object_is_refused_and_not_run(mistake, tmp_path, tag):
    marker = tmp_path / "marker"
    assert "python/object" in mistake(text=f"data: {tag} ['touch {marker}']\n")
    assert "python/object" in mistake(f"name={tag} ['touch {marker}']")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("seed: 0\ndata: a: b\n", "line 2, column 8"),
        ("seed: 0\n\tdata: 1\n", "line 2, column 1"),
        ("seed: 0\ndata: {source: digits]\n", "line 2, column 22"),
    ],
)
def test_broken_yaml_names_its_line_and_column(mistake, text, place):
    message = mistake(text=text)
    assert place in message
    assert "run.yaml" in message


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "- a\n- list\n", "just text\n"])
def test_a_file_without_settings(mistake, text):
    assert "holds no settings" in mistake(text=text)


def test_a_config_needs_its_data(mistake):
    assert "data: missing" in mistake(text="seed: 0\n")
    assert "data.source: must be one of" in mistake(text="data: {image_size: 16}\n")


def test_a_file_that_is_no_text(tmp_path):
    file = tmp_path / "picture.yaml"
    file.write_bytes(b"\x89PNG\xff\xfe")
    for path in (file, tmp_path):
        with pytest.raises(UserError, match="can't read the config") as caught:
            read_config(path)
        assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_suggests_the_nearest_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs/image/mnist").mkdir(parents=True)
    Path("configs/image/mnist/small.yaml").touch()
    Path("configs/image/mnist/flux.yaml").touch()
    with pytest.raises(UserError, match=r"did you mean configs/image/mnist/small\.yaml\?"):
        read_config("configs/image/mnist/smal.yaml")


@pytest.mark.parametrize(
    ("path", "output", "name"),
    [
        ("configs/image/mnist/flux.yaml", "output/image/mnist/flux", "flux"),
        ("configs/flux.v2.yaml", "output/flux.v2", "flux.v2"),
        ("elsewhere/mine.yaml", "output/mine", "mine"),
        ("mine.yaml", "output/mine", "mine"),
        ("configs/../mine.yaml", "output/mine", "mine"),
    ],
)
def test_name_and_output_folder_follow_from_the_path(tmp_path, monkeypatch, path, output, name):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("data: {source: digits}\n")
    for given_as in (Path(path), tmp_path / path):
        config = read_config(given_as)
        assert Path(config.resolved_output_dir) == Path(output)
        assert config.name == name


def test_name_and_output_folder_are_kept_where_they_are_given_and_not_null(read):
    text = "data: {source: digits}\nname: mine\noutput_dir: some/where\n"
    config = read("name=yours", text=text)
    assert (config.name, config.resolved_output_dir) == ("yours", "some/where")
    config = read("name=null", "output_dir=null", text=text)
    assert (config.name, Path(config.resolved_output_dir)) == ("run", Path("output/run"))


def test_a_config_of_an_older_checkpoint_is_read_without_the_keys_of_other_kinds():
    """Those of version 0.1 hold null, or 0, for the keys of kinds that are not chosen."""
    old = {
        "data": {"source": "mnist", "path": None, "templates": None, "workers": None},
        "text": {"encoder": "bytes", "width": 64, "t5": None, "cache": None},
        "autoencoder": {"kind": "pixel", "weights": None, "tile_size": 0, "max_batch": 0},
        "flow": {"timesteps": "mode", "mean": None, "scale": None, "shift": None},
    }
    new = {"data": {"source": "mnist"}, "text": {"width": 64}, "flow": {"timesteps": "mode"}}
    assert build_config(old, "old.pt") == build_config(new, "new.pt")


def test_a_config_does_not_change_once_it_is_built(read):
    with pytest.raises(ValueError, match="frozen"):
        read().train.steps = 3


@pytest.mark.parametrize("value", TREACHEROUS, ids=lambda value: value[:16])
def test_what_yaml_itself_chokes_on_is_a_mistake_not_a_crash(mistake, value):
    assert "train.steps" in mistake(f"train.steps={value}")
    assert "run.yaml" in mistake(text=f"data: {{source: digits}}\ntrain:\n  steps: {value}\n")


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates()
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4), max_leaves=6).map(str)


@given(key=st.sampled_from(list(all_keys(RunConfig))), value=VALUES | st.text())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_value_of_any_key_is_taken_or_is_a_user_error(key, value):
    try:
        read_config(TINY, [f"{key}={value}"])
    except UserError as error:
        assert str(error)


def test_every_path_may_begin_with_a_tilde_and_hold_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PICTURES", "/pictures")
    own = tmp_path / "own.yaml"
    own.write_text("data: {source: folder, path: [~/a, $PICTURES/b], templates: ['$5 {}']}\n")
    config = read_config(own, ["output_dir=~/run", "train.init_from=${PICTURES}/x.pt"])
    assert config.output_dir == str(tmp_path / "run")
    assert config.data.path == [str(tmp_path / "a"), "/pictures/b"]
    assert config.data.templates == ["$5 {}"]
    assert config.train.init_from == "/pictures/x.pt"
    with pytest.raises(UserError, match="the variable NOWHERE is not set"):
        read_config(own, ["data.path={$NOWHERE/a: 2}"])
